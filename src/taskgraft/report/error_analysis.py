"""What the predictions of one task say image by image: confusions, worst classes, flips, calibration."""

from __future__ import annotations

from collections.abc import Mapping
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


class Flip(NamedTuple):
    """An image whose prediction changed from parent to child; `truth` is "" where it is not labeled.

    `row` is its index in the predictions, `confidence` the child's.
    """

    name: str
    truth: str
    before: str
    after: str
    row: int
    confidence: float


class Confusion(NamedTuple):
    """Images of one class with the same wrong prediction: their fraction of the class, their rows by confidence."""

    truth: str
    predicted: str
    images: int
    fraction: float
    rows: tuple[int, ...]


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
    ids: tuple[str, ...]
    labels: NDArray[np.int64]  # [N], -1 = unlabeled
    predicted: NDArray[np.int64]  # [N], -1 = another task's class
    confidence: NDArray[np.float64]  # [N]
    counts: NDArray[np.int64]  # [K, K + 1] images by true and predicted class, the last column for other tasks
    class_results: tuple[ClassResult, ...]  # the worst first
    bins: tuple[Bin, ...]
    ece: float  # expected calibration error in [0, 1]
    parent_ece: float | None
    calibration: Calibration | None  # None with too few images
    calibrated_bins: tuple[Bin, ...]  # each half of the images under the temperature fitted on the other half
    negative_flips: tuple[Flip, ...]  # right before, wrong now
    positive_flips: tuple[Flip, ...]  # wrong before, right now


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
    name = task.added_to or task.name
    for key in ("new", "old") if task.new else ("old", "new"):
        child = predictions.get(key)
        if (
            child is not None
            and _is_labeled(child, name)
            and (task.new or child.labels[name].max() < len(task.classes))
        ):
            parent = predictions.get(f"{key}-parent")
            comparable = not task.new and parent is not None and name in parent.logits and parent.ids == child.ids
            return _analyze(name, key, child, parent if comparable else None)._replace(task=task.name)
    return None


def _is_labeled(predictions: Predictions, task: str) -> bool:
    labels = predictions.labels.get(task)
    return task in predictions.logits and labels is not None and bool((labels >= 0).any())


def _analyze(task: str, key: str, child: Predictions, parent: Predictions | None) -> ErrorAnalysis:
    labels, logits, classes = child.labels[task], child.logits[task], child.classes[task]
    labeled = labels >= 0
    counts, parent_counts, negative, positive = metrics.confusion_matrix(child, task), None, (), ()
    if parent is not None:
        parent = parent._replace(labels={task: labels})  # its file may carry none
        parent_counts = metrics.confusion_matrix(parent, task)
        before, after = (metrics.predicted_classes(one, task) for one in (parent, child))
        negative = _list_flips(child, task, labeled & (before == labels) & (after != labels), before, after, labels)
        positive = _list_flips(child, task, labeled & (before != labels) & (after == labels), before, after, labels)
    fitted = calibration.calibrate(logits, labels)
    calibrated = calibration.cross_fitted(logits[labeled], labels[labeled]) if fitted else None
    return ErrorAnalysis(
        task=task,
        set_name=key,
        classes=classes,
        ids=child.ids,
        labels=labels,
        predicted=metrics.predicted_classes(child, task),
        confidence=metrics.probabilities(logits).max(axis=1),
        counts=counts,
        class_results=_class_results(classes, counts, parent_counts),
        bins=_bins(logits, labels),
        ece=metrics.expected_calibration_error(logits, labels),
        parent_ece=None if parent is None else metrics.expected_calibration_error(parent.logits[task], labels),
        calibration=fitted,
        calibrated_bins=() if calibrated is None else _bins(calibrated, labels[labeled]),
        negative_flips=negative,
        positive_flips=positive,
    )


def _class_results(
    classes: tuple[str, ...], counts: NDArray[np.int64], parent_counts: NDArray[np.int64] | None
) -> tuple[ClassResult, ...]:
    names = (*classes, OTHER_TASK)
    results = []
    for k in np.flatnonzero(counts.sum(axis=1)):
        total = int(counts[k].sum())
        wrong = counts[k].copy()
        wrong[k] = 0
        confused_with = names[int(wrong.argmax())] if wrong.any() else ""
        parent = None if parent_counts is None else float(parent_counts[k, k] / total)
        results.append(ClassResult(classes[k], total, float(counts[k, k] / total), parent, confused_with))
    return tuple(sorted(results, key=lambda result: result.child))


def _list_flips(
    child: Predictions,
    task: str,
    selected: NDArray[np.bool_],
    before: NDArray[np.int64],
    after: NDArray[np.int64],
    labels: NDArray[np.int64] | None,
) -> tuple[Flip, ...]:
    names = (*child.classes[task], OTHER_TASK)  # index -1 is the last
    rows = np.flatnonzero(selected)
    confidence = metrics.probabilities(child.logits[task][rows]).max(axis=1, initial=0)
    truths = ["" if labels is None else names[labels[i]] for i in rows]
    return tuple(
        Flip(child.ids[i], truth, names[before[i]], names[after[i]], int(i), float(value))
        for i, truth, value in zip(rows, truths, confidence, strict=True)
    )


def find_disagreements(task: str, predictions: Mapping[str, Predictions]) -> tuple[Flip, ...]:
    """List the new task's images on which child and parent predict different classes of an old task."""
    child, parent = predictions.get("new"), predictions.get("new-parent")
    if child is None or parent is None or task not in child.logits or task not in parent.logits:
        return ()
    if parent.ids != child.ids:
        return ()
    logits = child.logits[task][:, : parent.logits[task].shape[1]]  # classes added since cannot agree
    before = metrics.predicted_classes(parent, task)
    after = metrics.predicted_classes(child._replace(logits={**child.logits, task: logits}), task)
    return _list_flips(child, task, before != after, before, after, None)


def find_confusions(analysis: ErrorAnalysis, limit: int) -> list[Confusion]:
    """List the most frequent confusions, at most `limit`, each with its images sorted by confidence."""
    wrong = analysis.counts.copy()
    np.fill_diagonal(wrong, 0)
    totals = analysis.counts.sum(axis=1)
    names = (*analysis.classes, OTHER_TASK)
    confusions = []
    for index in np.argsort(-wrong, axis=None, kind="stable")[:limit].tolist():
        truth, predicted = divmod(index, wrong.shape[1])
        images = int(wrong[truth, predicted])
        if images:
            answer = predicted if predicted < len(analysis.classes) else -1
            rows = np.flatnonzero((analysis.labels == truth) & (analysis.predicted == answer))
            rows = tuple(rows[np.argsort(-analysis.confidence[rows], kind="stable")].tolist())
            fraction = float(images / totals[truth])
            confusions.append(Confusion(analysis.classes[truth], names[predicted], images, fraction, rows))
    return confusions


def _bins(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> tuple[Bin, ...]:
    labeled = labels >= 0
    probabilities = metrics.probabilities(logits[labeled])
    confidence, hit = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels[labeled]
    index = np.minimum((confidence * metrics.BINS).astype(int), metrics.BINS - 1)
    return tuple(
        Bin(float(confidence[index == b].mean()), float(hit[index == b].mean()), int((index == b).sum()))
        for b in range(metrics.BINS)
        if (index == b).any()
    )
