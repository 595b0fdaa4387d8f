"""An exported file against the model it came from: difference, same answers, accuracy; and when it is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from taskgraft import data, metrics
from taskgraft.models.classifier import Classifier
from taskgraft.models.inference import predict
from taskgraft.results.predictions import Predictions
from taskgraft.types import Images

Runner = Callable[[NDArray[Any]], list[NDArray[np.float32]]]

TOLERANCE = 1e-3  # largest difference, as a share of the largest logit
LOSS = 0.01  # accuracy that int8 may cost
BATCHES = (1, 2, 7)  # tried first, so that a batch dimension that is not free is found
BATCH = 32


class TaskCheck(BaseModel):
    """One task of an export beside the model; accuracies are None where no image is labeled for it."""

    model_config = ConfigDict(frozen=True)
    task: str
    images: int
    difference: float  # the largest absolute difference of a logit
    relative: float  # the same as a share of the largest logit
    agreement: float  # share of images with the same top answer
    labeled: int = 0
    accuracy: float | None = None  # of the model
    exported: float | None = None  # of the export


def inputs(images: Images, start: int, stop: int, *, uint8: bool) -> NDArray[Any]:
    """What the file is fed: pixels [B, S, S, 3] uint8, or normalized images [B, 3, S, S] float32."""
    if uint8:
        return np.ascontiguousarray(images.pixels[start:stop].numpy())
    return np.ascontiguousarray(data.normalize(images, start, stop).numpy())


def compare(classifier: Classifier, images: Images, run: Runner, *, uint8: bool) -> tuple[TaskCheck, ...]:
    """Run the export on every image, in batches of 1, 2, 7, then 32, and set it beside the model's own answers."""
    model = predict(classifier, images)
    parts = [run(inputs(images, start, stop, uint8=uint8)) for start, stop in _batches(len(images.pixels))]
    joined = [np.concatenate(found) for found in zip(*parts, strict=True)]
    exported = model._replace(logits=dict(zip(model.logits, joined, strict=True)))
    return tuple(_task(task, model, exported) for task in model.classes)


def refusal(checks: tuple[TaskCheck, ...], precision: str) -> str | None:
    """Why an export must not be used; None where it may."""
    for check in checks:
        if not np.isfinite(check.difference):
            return f"{check.task}: the exported file gives values that are not finite"
        if precision == "fp32" and check.relative > TOLERANCE:
            return f"{check.task}: logits differ by {check.relative:.1e} of their scale, more than {TOLERANCE:.0e}"
        if precision == "fp32" and check.agreement < 1:
            return f"{check.task}: {1 - check.agreement:.2%} of the images get another answer"
        if precision != "fp32" and check.accuracy is not None and check.exported is not None:
            if check.accuracy - check.exported > LOSS:
                return f"{check.task}: accuracy falls from {check.accuracy:.2%} to {check.exported:.2%}"
        elif precision != "fp32" and check.agreement < 1 - LOSS:
            return f"{check.task}: {1 - check.agreement:.2%} of the images get another answer, and none is labeled"
    return None


def line(check: TaskCheck) -> str:
    """One task in words."""
    text = (
        f"{check.task}: same answer on {check.agreement:.2%} of {check.images} images, "
        f"largest difference {check.difference:.1e} ({check.relative:.1e} of the logits' scale)"
    )
    if check.accuracy is None or check.exported is None:
        return text
    return f"{text}; accuracy {check.accuracy:.2%} → {check.exported:.2%} on {check.labeled} labeled"


def _batches(count: int) -> Iterator[tuple[int, int]]:
    start = 0
    for size in BATCHES:
        if start < count:
            yield start, min(start + size, count)
        start += size
    for first in range(start, count, BATCH):
        yield first, min(first + BATCH, count)


def _task(task: str, model: Predictions, exported: Predictions) -> TaskCheck:
    ours, theirs = model.logits[task].astype(np.float64), exported.logits[task].astype(np.float64)
    difference = float(np.abs(ours - theirs).max())
    same = metrics.predicted_classes(model, task) == metrics.predicted_classes(exported, task)
    found = TaskCheck(
        task=task,
        images=len(ours),
        difference=difference,
        relative=difference / max(float(np.abs(ours).max()), 1e-12),
        agreement=float(same.mean()),
    )
    labeled = int((model.labels[task] >= 0).sum()) if task in model.labels else 0
    if not labeled:
        return found
    scores = {"accuracy": metrics.accuracy(model, task), "exported": metrics.accuracy(exported, task)}
    return found.model_copy(update={"labeled": labeled, **scores})
