"""A strip of sample images with the model's predictions for each task, chosen without looking at the predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from taskgraft import metrics
from taskgraft.report.error_analysis import OTHER_TASK
from taskgraft.report.run_summary import PARENT_AND_CHILD, Roles
from taskgraft.report.thumbnails import GetThumbnail
from taskgraft.results.predictions import Predictions

MAX_IMAGES = 8  # a row on a wide screen
MAX_TASKS = 3  # below an image


class Answer(NamedTuple):
    """The prediction for one task; `note` has the true class, or the parent's prediction, where it differs."""

    task: str
    predicted: str
    confidence: float
    verdict: Literal["right", "wrong", ""]  # "" for an image without a label of this task
    note: str


class SampleImage(NamedTuple):
    """An image as a data URI, with its alternative text and the predictions for each task."""

    source: str
    alt: str
    answers: list[Answer]


def build_sample_strip(
    predictions: Mapping[str, Predictions],
    tasks: Sequence[str],
    get_thumbnail: GetThumbnail,
    roles: Roles = PARENT_AND_CHILD,
) -> list[SampleImage]:
    """Build a strip of validation images, evenly spaced and half of them old where there are old ones.

    Args:
        predictions: "new" and "old" are the child's, "new-parent" and "old-parent" the parent's, as far as they exist.
        tasks: Tasks whose predictions are shown, at most MAX_TASKS of them.
        get_thumbnail: Returns images of the sets "new" and "old".
        roles: What the models are called.

    Returns:
        At most MAX_IMAGES images; those without a thumbnail are left out.
    """
    names = [name for name in ("new", "old") if name in predictions and len(predictions[name].ids)]
    strip = []
    for name in names:
        child, parent, count = predictions[name], predictions.get(f"{name}-parent"), MAX_IMAGES // len(names)
        parent = parent if parent is not None and parent.ids == child.ids else None
        total = len(child.ids)
        for row in dict.fromkeys((2 * i + 1) * total // (2 * count) for i in range(count)):
            if source := get_thumbnail(name, row):
                shown = [task for task in tasks[:MAX_TASKS] if task in child.logits]
                answers = [_describe(child, parent, task, row, roles) for task in shown]
                text = ", ".join(f"{answer.task} {answer.predicted}" for answer in answers)
                strip.append(SampleImage(source, f"{child.ids[row]}: {text}", answers))
    return strip


def _describe(child: Predictions, parent: Predictions | None, task: str, row: int, roles: Roles) -> Answer:
    predicted = _predict(child, task, row)
    confidence = float(metrics.probabilities(child.logits[task][[row]]).max())
    label = int(child.labels[task][row]) if task in child.labels else -1
    if label >= 0:
        truth = child.classes[task][label]
        right = predicted == truth
        return Answer(task, predicted, confidence, "right" if right else "wrong", "" if right else f"true: {truth}")
    before = _predict(parent, task, row) if parent is not None and task in parent.logits else predicted
    return Answer(task, predicted, confidence, "", "" if before == predicted else f"{roles.before}: {before}")


def _predict(predictions: Predictions, task: str, row: int) -> str:
    one = predictions._replace(logits={name: logits[[row]] for name, logits in predictions.logits.items()})
    names = (*predictions.classes[task], OTHER_TASK)  # index -1 is the last
    return names[int(metrics.predicted_classes(one, task)[0])]
