"""Comparison of an exported file with the model it came from, and when the difference is unacceptable."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from taskgraft import data, metrics
from taskgraft.exports.signature import Runner
from taskgraft.models.classifier import Classifier
from taskgraft.models.inference import predict
from taskgraft.results.predictions import Predictions
from taskgraft.types import Images

TOLERANCE = 1e-3  # maximum difference of a logit, relative to the largest logit
MAX_ACCURACY_LOSS = 0.01  # of int8
FIRST_BATCHES = (1, 2, 7)  # a batch dimension that is not free fails here
BATCH = 32


class TaskCheck(BaseModel):
    """An export compared with the model on one task.

    Attributes:
        task: name of the task.
        images: number of images.
        difference: maximum absolute difference of a logit.
        relative: the same relative to the largest logit.
        agreement: fraction of images with the same prediction.
        labeled: number of labeled images.
        accuracy: accuracy of the model; None without labeled images.
        exported: accuracy of the export; None without labeled images.
    """

    model_config = ConfigDict(frozen=True)
    task: str
    images: int
    difference: float
    relative: float
    agreement: float
    labeled: int = 0
    accuracy: float | None = None
    exported: float | None = None


def prepare_inputs(images: Images, start: int, stop: int, *, uint8: bool) -> NDArray[Any]:
    """The input of an exported file: pixels [B, S, S, 3] uint8, or normalized images [B, 3, S, S] float32."""
    batch = images.pixels[start:stop] if uint8 else data.normalize(images, start, stop)
    return np.ascontiguousarray(batch.numpy())


def compare(classifier: Classifier, images: Images, run: Runner, *, uint8: bool) -> tuple[TaskCheck, ...]:
    """Run an export on all images, in batches of 1, 2, 7, then 32, and compare it with the model."""
    model = predict(classifier, images)
    batches = [run(prepare_inputs(images, *bounds, uint8=uint8)) for bounds in _batch_bounds(len(images.pixels))]
    logits = [np.concatenate(parts) for parts in zip(*batches, strict=True)]
    exported = model._replace(logits=dict(zip(model.logits, logits, strict=True)))
    return tuple(_compare_task(task, model, exported) for task in model.classes)


def find_unacceptable(checks: tuple[TaskCheck, ...], precision: str) -> str | None:
    """Describe the first unacceptable difference.

    In fp32 a logit may differ by `TOLERANCE`, and all predictions must be equal. An int8 export may lose
    `MAX_ACCURACY_LOSS` of accuracy, or without labeled images change that fraction of the predictions.
    """
    for check in checks:
        changed = f"{1 - check.agreement:.2%} of the predictions change"
        if not np.isfinite(check.difference):
            return f"{check.task}: the exported file returns non-finite values"
        if precision == "fp32":
            if check.relative > TOLERANCE:
                return f"{check.task}: logits differ by {check.relative:.1e} of their scale (limit {TOLERANCE:.0e})"
            if check.agreement < 1:
                return f"{check.task}: {changed}"
        elif check.accuracy is not None and check.exported is not None:
            if check.accuracy - check.exported > MAX_ACCURACY_LOSS:
                return f"{check.task}: accuracy drops from {check.accuracy:.2%} to {check.exported:.2%}"
        elif check.agreement < 1 - MAX_ACCURACY_LOSS:
            return f"{check.task}: {changed}, and there are no labeled images"
    return None


def format_check(check: TaskCheck) -> str:
    """A comparison as one line."""
    text = (
        f"{check.task}: same prediction on {check.agreement:.2%} of {check.images} images, "
        f"maximum difference {check.difference:.1e} ({check.relative:.1e} of the logits' scale)"
    )
    if check.accuracy is None or check.exported is None:
        return text
    return f"{text}; accuracy {check.accuracy:.2%} → {check.exported:.2%} on {check.labeled} labeled images"


def _batch_bounds(count: int) -> Iterator[tuple[int, int]]:
    start = 0
    sizes = iter(FIRST_BATCHES)
    while start < count:
        stop = min(start + next(sizes, BATCH), count)
        yield start, stop
        start = stop


def _compare_task(task: str, model: Predictions, exported: Predictions) -> TaskCheck:
    expected, actual = model.logits[task].astype(np.float64), exported.logits[task].astype(np.float64)
    difference = float(np.abs(expected - actual).max())
    labeled = int((model.labels[task] >= 0).sum()) if task in model.labels else 0
    return TaskCheck(
        task=task,
        images=len(expected),
        difference=difference,
        relative=difference / max(float(np.abs(expected).max()), 1e-12),
        agreement=float((metrics.predicted_classes(model, task) == metrics.predicted_classes(exported, task)).mean()),
        labeled=labeled,
        accuracy=metrics.accuracy(model, task) if labeled else None,
        exported=metrics.accuracy(exported, task) if labeled else None,
    )
