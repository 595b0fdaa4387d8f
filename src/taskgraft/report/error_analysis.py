"""What the predictions of one task say image by image: confusions, worst classes, flips, calibration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from taskgraft import calibration, metrics
from taskgraft.calibration import Calibration
from taskgraft.results.predictions import Predictions
from taskgraft.results.record import TaskResult

OTHER_TASK = "(another task's class)"  # a prediction under a joint softmax


class Bin(NamedTuple):
    """Images of similar confidence: their mean confidence, their accuracy, their number."""

    confidence: float
    accuracy: float
    images: int


class Example(NamedTuple):
    """An image with two classes that differ: true and predicted, or predicted by the parent and by the child."""

    image: str
    row: int  # in the predictions
    first: str
    second: str
    confidence: float  # of the child


class ClassResult(NamedTuple):
    """Accuracy on one class; `parent` is None for a new task, `confused_with` the most frequent wrong prediction."""

    name: str
    images: int
    child: float
    parent: float | None
    confused_with: str


class ErrorAnalysis(NamedTuple):
    """Everything measured on a task's labeled validation images, those of the set `set_name` ("new" or "old")."""

    task: str
    set_name: str
    classes: tuple[str, ...]
    counts: NDArray[np.int64]  # [K, K + 1] images by true and predicted class, the last column for other tasks
    class_results: list[ClassResult]  # the worst first
    errors: list[Example]
    bins: list[Bin]
    ece: float  # expected calibration error in [0, 1]
    parent_ece: float | None
    calibration: Calibration | None  # None with too few images
    calibrated_bins: list[Bin]  # each half of the images under the temperature fitted on the other half
    negative_flips: list[Example]  # right before, wrong now
    positive_flips: list[Example]  # wrong before, right now

    @property
    def class_sizes(self) -> dict[str, int]:
        """Labeled images of each class."""
        return dict(zip(self.classes, self.counts.sum(axis=1).tolist(), strict=True))


def analyze_errors(task: TaskResult, predictions: Mapping[str, Predictions]) -> ErrorAnalysis | None:
    """Analyze one task's predictions on its labeled validation images.

    Args:
        task: The task.
        predictions: "new" and "old" are the child's on the new task's and on the old tasks' images, "new-parent" and
            "old-parent" the parent's; each may be missing.

    Returns:
        The analysis, compared with the parent where its predictions on the same images are known; None without
        labeled images.
    """
    name = task.refreshes or task.added_to or task.name
    for key in ("new", "old") if task.new else ("old", "new"):
        child, parent = predictions.get(key), predictions.get(f"{key}-parent")
        if child is None or name not in child.logits or name not in child.labels:
            continue
        labels = child.labels[name]
        if (labels >= 0).any() and (task.new or labels.max() < len(task.classes)):
            has_before = not task.new or bool(task.refreshes) or (task.parent is not None and not task.added_to)
            comparable = has_before and parent is not None and name in parent.logits and parent.ids == child.ids
            return _analyze(name, key, child, parent if comparable else None)._replace(task=task.name)
    return None


def _analyze(task: str, key: str, child: Predictions, parent: Predictions | None) -> ErrorAnalysis:
    labels, logits = child.labels[task], child.logits[task]
    labeled = labels >= 0
    predicted = metrics.predicted_classes(child, task)
    correct = predicted == labels
    counts = metrics.confusion_matrix(child, task)
    parent_counts, parent_ece, negative, positive = None, None, [], []
    if parent is not None:
        parent = parent._replace(labels={task: labels})  # its file may carry none
        parent_counts = metrics.confusion_matrix(parent, task)
        parent_ece = metrics.expected_calibration_error(parent.logits[task], labels)
        before = metrics.predicted_classes(parent, task)
        was_correct = before == labels
        negative = _list_examples(child, task, labeled & was_correct & ~correct, before, predicted)
        positive = _list_examples(child, task, labeled & ~was_correct & correct, before, predicted)
    fitted = calibration.calibrate(logits, labels)
    return ErrorAnalysis(
        task=task,
        set_name=key,
        classes=child.classes[task],
        counts=counts,
        class_results=_list_class_results(child.classes[task], counts, parent_counts),
        errors=_list_examples(child, task, labeled & ~correct, labels, predicted),
        bins=_bin_by_confidence(logits[labeled], labels[labeled]),
        ece=metrics.expected_calibration_error(logits, labels),
        parent_ece=parent_ece,
        calibration=fitted,
        calibrated_bins=[] if fitted is None else _bin_by_confidence(
            calibration.cross_fitted(logits[labeled], labels[labeled]), labels[labeled]
        ),
        negative_flips=negative,
        positive_flips=positive,
    )  # fmt: skip


def _list_class_results(
    classes: tuple[str, ...], counts: NDArray[np.int64], parent_counts: NDArray[np.int64] | None
) -> list[ClassResult]:
    names = (*classes, OTHER_TASK)
    results = []
    for k in np.flatnonzero(counts.sum(axis=1)):
        total = int(counts[k].sum())
        wrong = counts[k].copy()
        wrong[k] = 0
        confused_with = names[int(wrong.argmax())] if wrong.any() else ""
        parent = None if parent_counts is None else float(parent_counts[k, k] / total)
        results.append(ClassResult(classes[k], total, float(counts[k, k] / total), parent, confused_with))
    return sorted(results, key=lambda result: result.child)


def _list_examples(
    child: Predictions, task: str, selected: NDArray[np.bool_], first: NDArray[np.int64], second: NDArray[np.int64]
) -> list[Example]:
    names = (*child.classes[task], OTHER_TASK)  # index -1 is the last
    rows = np.flatnonzero(selected)
    confidence = metrics.probabilities(child.logits[task][rows]).max(axis=1, initial=0)
    return [
        Example(child.ids[row], int(row), names[first[row]], names[second[row]], float(value))
        for row, value in zip(rows, confidence, strict=True)
    ]


def find_disagreements(task: str, predictions: Mapping[str, Predictions]) -> list[Example]:
    """List the new task's images on which child and parent predict different classes of an old task."""
    child, parent = predictions.get("new"), predictions.get("new-parent")
    if child is None or parent is None or task not in child.logits or task not in parent.logits:
        return []
    if parent.ids != child.ids:
        return []
    logits = child.logits[task][:, : parent.logits[task].shape[1]]  # classes added since cannot agree
    before = metrics.predicted_classes(parent, task)
    after = metrics.predicted_classes(child._replace(logits={**child.logits, task: logits}), task)
    return _list_examples(child, task, before != after, before, after)


def group_examples(examples: Iterable[Example]) -> list[list[Example]]:
    """Group examples by their two classes, the largest group first, each sorted by confidence."""
    groups: dict[tuple[str, str], list[Example]] = {}
    for example in sorted(examples, key=lambda example: -example.confidence):
        groups.setdefault((example.first, example.second), []).append(example)
    return sorted(groups.values(), key=len, reverse=True)


def _bin_by_confidence(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> list[Bin]:
    probabilities = metrics.probabilities(logits)
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    index = np.minimum((confidence * metrics.BINS).astype(int), metrics.BINS - 1)
    return [
        Bin(float(confidence[index == b].mean()), float(correct[index == b].mean()), int((index == b).sum()))
        for b in np.unique(index)
    ]
