"""`taskgraft evaluate`: a model on labeled images."""

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
    parent_task: str | None = None,
    html: PathLike | None = None,
    cache: PathLike | None = None,
    callbacks: Callbacks = Callbacks(),  # noqa: B008 - immutable
) -> dict[str, Any]:
    """Evaluate one task of a model.

    Args:
        model: Bundle, file of weights, timm folder or timm name.
        data: Labeled images; their validation images where they are split.
        task: The task; None = the one whose classes the images have.
        arch: timm name of the architecture, for a file that does not say.
        labels: File with the class names, for a file that does not have them.
        preprocessing: How images are shown, where it differs from what the model says.
        parent_task: Name for the task of a model without task names; None = that of its file.
        html: HTML page to write, or None.
        cache: Folder of decoded pixels; None = in memory only.
        callbacks: Progress callbacks.

    Returns:
        "accuracy" with its 95 % interval "low" and "high", "macro_f1", "top_5_accuracy" (None for few classes),
        "calibration_error", the five "worst" classes (name,
        accuracy, images), the accuracy "chance" of always predicting the "majority" class, "balanced_accuracy" over
        classes, which differs where they are "uneven", the classes "never_predicted", number of "images", "task", and
        "excluded" images with reasons.

    Raises:
        InputError: The model does not have the task, or there are no images to evaluate on.
        DataError: The images have classes that the task does not have.
    """
    data, html = Path(data), as_path(html)
    bundle = open_parent(model, arch=arch, labels=labels, preprocessing=preprocessing, task=parent_task)
    for note in bundle.notes if bundle.folder is None else ():
        callbacks.info(f"model: {note}")
    bundle.classifier.to(distributed.device())
    owner, dataset = measuring.open_labeled(bundle, data, task, as_path(cache), callbacks)
    if dataset.val is None:
        raise InputError(f"{data} has no validation images; add a val/ folder")
    predictions = predict(bundle.classifier, dataset.val)
    accuracy = metrics.bootstrap_interval(metrics.correct(predictions, owner.name))
    balance = metrics.class_balance(predictions, owner.name)
    if html:
        thumbnails = report.ThumbnailMaker({"new": dataset.val})
        page = report.render_evaluation(
            Path(model).name, str(data), predictions, owner.name, accuracy, dataset.excluded, thumbnails
        )
        report.write_page(html, page)
    confusion = metrics.confusion_matrix(predictions, owner.name)
    counts = confusion.sum(axis=1)
    present = np.flatnonzero(counts)
    recall = confusion.diagonal()[present] / counts[present]
    worst = recall.argsort(kind="stable")[:5]
    return {
        "task": owner.name,
        "images": accuracy.n,
        "accuracy": accuracy.mean,
        "low": accuracy.low,
        "high": accuracy.high,
        "macro_f1": metrics.macro_f1(predictions, owner.name),
        "top_5_accuracy": metrics.top_5(predictions, owner.name),
        "calibration_error": metrics.expected_calibration_error(
            predictions.logits[owner.name], predictions.labels[owner.name]
        ),
        "chance": balance.chance,
        "majority": balance.majority,
        "balanced_accuracy": balance.balanced,
        "uneven": balance.uneven,
        "never_predicted": list(balance.never_predicted),
        "worst": [(owner.classes[present[i]], float(recall[i]), int(counts[present[i]])) for i in worst],
        "excluded": [list(pair) for pair in dataset.excluded],
    }
