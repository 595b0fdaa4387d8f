"""A model on labeled images: the numbers behind `evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from taskgraft import distributed, metrics, report
from taskgraft.bundle import open_parent
from taskgraft.errors import InputError
from taskgraft.models.inference import predict
from taskgraft.pipeline import measuring
from taskgraft.types import Callbacks, PathLike, as_path


def evaluate(
    model: PathLike,
    data: PathLike,
    *,
    task: str | None = None,
    arch: str | None = None,
    labels: PathLike | None = None,
    preprocessing: str | None = None,
    parent_task: str = "parent",
    html: PathLike | None = None,
    cache: PathLike | None = None,
    callbacks: Callbacks = Callbacks(),  # noqa: B008 - immutable
) -> dict[str, Any]:
    """Accuracy with its 95 % interval, calibration error and the five worst classes of one task; `html` gets a page.

    Raises TaskgraftError when the model lacks `task` or the images have classes that it does not know.
    """
    data, html = Path(data), as_path(html)
    bundle = open_parent(model, arch=arch, labels=labels, preprocessing=preprocessing, task=parent_task)
    for line in bundle.notes if bundle.folder is None else ():
        callbacks.info(f"model: {line}")
    bundle.classifier.to(distributed.device())
    owner, found = measuring.labeled(bundle, data, task, as_path(cache), callbacks)
    if found.val is None:
        raise InputError(f"{data} holds no image to measure on; add a val/ folder")
    predictions = predict(bundle.classifier, found.val)
    hits = metrics.correct(predictions, owner.name)
    share = metrics.bootstrap_interval(hits)
    counts = metrics.confusion_matrix(predictions, owner.name)
    totals = counts.sum(axis=1)
    if html:
        thumbnails = report.ThumbnailMaker({"new": found.val})
        page = report.render_evaluation(
            Path(model).name, str(data), predictions, owner.name, share, found.excluded, thumbnails
        )
        report.write_page(html, page)
    order = sorted(np.flatnonzero(totals), key=lambda row: counts[row, row] / totals[row])
    return {
        "task": owner.name,
        "images": share.n,
        "accuracy": share.mean,
        "low": share.low,
        "high": share.high,
        "calibration_error": metrics.expected_calibration_error(
            predictions.logits[owner.name], predictions.labels[owner.name]
        ),
        "worst": [(owner.classes[row], float(counts[row, row] / totals[row]), int(totals[row])) for row in order[:5]],
        "excluded": [list(pair) for pair in found.excluded],
    }
