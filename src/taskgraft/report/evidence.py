"""What predictions say image by image: confusions, worst classes, changed answers, calibration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from taskgraft import calibration, metrics
from taskgraft.calibration import Calibration
from taskgraft.results.predictions import Predictions
from taskgraft.results.record import TaskResult

ELSEWHERE = "(another task's class)"  # under a joint softmax


class Bin(NamedTuple):
    """Images whose confidence is alike: mean confidence, accuracy, how many."""

    confidence: float
    accuracy: float
    images: int


class Change(NamedTuple):
    """An image whose answer changed from parent to child; `truth` is "" where nobody labeled it.

    `row` is its place among the predictions, `sure` the child's confidence in its answer.
    """

    name: str
    truth: str
    before: str
    after: str
    row: int
    sure: float


class Confusion(NamedTuple):
    """Images of one class that got one wrong answer: how many, their share of the class, their rows, surest first."""

    truth: str
    answer: str
    images: int
    share: float
    rows: tuple[int, ...]


class ClassResult(NamedTuple):
    """One class of a task; `parent` is None for a new task."""

    name: str
    images: int
    child: float
    parent: float | None
    mistaken: str  # the most frequent wrong answer


class Evidence(NamedTuple):
    """Everything measured on a task's labeled validation images, those of the set `key` ("new" or "old")."""

    task: str
    key: str
    classes: tuple[str, ...]
    ids: tuple[str, ...]
    labels: NDArray[np.int64]  # [N], -1 = unlabeled
    answers: NDArray[np.int64]  # [N], -1 = another task's class
    sure: NDArray[np.float64]  # [N], confidence in the answer
    counts: NDArray[np.int64]  # [K, K + 1], as metrics.confusion
    results: tuple[ClassResult, ...]
    bins: tuple[Bin, ...]
    calibration: float
    calibration_before: float | None  # the parent's
    fitted: Calibration | None  # a temperature; None with too few images
    calibrated: tuple[Bin, ...]  # each half of the images under the temperature that the other half chose
    lost: tuple[Change, ...]  # right before, wrong now
    gained: tuple[Change, ...]  # wrong before, right now


def gather(task: TaskResult, predictions: Mapping[str, Predictions]) -> Evidence | None:
    """The evidence on one task; None without labeled images."""
    for key in ("new", "old") if task.new else ("old", "new"):
        child, of = predictions.get(key), task.added_to or task.name
        if child is not None and _labeled(child, of) and (task.new or child.labels[of].max() < len(task.classes)):
            parent = predictions.get(f"{key}-parent")
            usable = not task.new and parent is not None and of in parent.logits and parent.ids == child.ids
            return _measure(of, key, child, parent if usable else None)._replace(task=task.name)
    return None


def _labeled(predictions: Predictions, task: str) -> bool:
    labels = predictions.labels.get(task)
    return task in predictions.logits and labels is not None and bool((labels >= 0).any())


def _measure(task: str, key: str, child: Predictions, parent: Predictions | None) -> Evidence:
    labels, logits = child.labels[task], child.logits[task]
    counts = metrics.confusion_matrix(child, task)
    before = None
    if parent is not None:  # its file may carry no labels: they are the child's
        before = metrics.confusion_matrix(parent._replace(labels={task: labels}), task)
    lost, gained = _moved(task, child, parent) if parent is not None else ((), ())
    known = labels >= 0
    fitted = calibration.calibrate(logits, labels)
    scaled = calibration.cross_fitted(logits[known], labels[known]) if fitted else None
    return Evidence(
        task,
        key,
        child.classes[task],
        child.ids,
        labels,
        metrics.predicted_classes(child, task),
        metrics.probabilities(logits).max(axis=1),
        counts,
        _results(child.classes[task], counts, before),
        _bins(logits, labels),
        metrics.expected_calibration_error(logits, labels),
        None if parent is None else metrics.expected_calibration_error(parent.logits[task], labels),
        fitted,
        () if scaled is None else _bins(scaled, labels[known]),
        lost,
        gained,
    )


def _results(
    classes: tuple[str, ...], counts: NDArray[np.int64], before: NDArray[np.int64] | None
) -> tuple[ClassResult, ...]:
    names = (*classes, ELSEWHERE)
    found = []
    for k in np.flatnonzero(counts.sum(axis=1)):
        total = int(counts[k].sum())
        wrong = counts[k].copy()
        wrong[k] = 0
        mistaken = names[int(wrong.argmax())] if wrong.any() else ""
        earlier = None if before is None else float(before[k, k] / total)
        found.append(ClassResult(classes[k], total, float(counts[k, k] / total), earlier, mistaken))
    return tuple(sorted(found, key=lambda one: one.child))


def _moved(task: str, child: Predictions, parent: Predictions) -> tuple[tuple[Change, ...], tuple[Change, ...]]:
    """Images that went from right to wrong, and from wrong to right."""
    labels = child.labels[task]
    was, now = metrics.predicted_classes(parent, task), metrics.predicted_classes(child, task)
    known = labels >= 0
    lost = known & (was == labels) & (now != labels)
    gained = known & (was != labels) & (now == labels)
    return _changes(task, child, lost, was, now, labels), _changes(task, child, gained, was, now, labels)


def _changes(
    task: str,
    child: Predictions,
    chosen: NDArray[np.bool_],
    was: NDArray[np.int64],
    now: NDArray[np.int64],
    labels: NDArray[np.int64] | None,
) -> tuple[Change, ...]:
    names = (*child.classes[task], ELSEWHERE)  # -1 is the last
    rows = np.flatnonzero(chosen)
    sure = metrics.probabilities(child.logits[task][rows]).max(axis=1, initial=0)
    return tuple(
        Change(
            child.ids[i],
            names[labels[i]] if labels is not None else "",
            names[was[i]],
            names[now[i]],
            int(i),
            float(confidence),
        )
        for i, confidence in zip(rows, sure, strict=True)
    )


def disagreements(task: str, predictions: Mapping[str, Predictions]) -> tuple[Change, ...]:
    """The new task's images on which child and parent differ about an old task, whatever is right."""
    child, parent = predictions.get("new"), predictions.get("new-parent")
    if child is None or parent is None or task not in child.logits or task not in parent.logits:
        return ()
    if parent.ids != child.ids:
        return ()
    known = child.logits[task][:, : parent.logits[task].shape[1]]  # classes added since cannot agree
    was, now = (
        metrics.predicted_classes(parent, task),
        metrics.predicted_classes(child._replace(logits={**child.logits, task: known}), task),
    )
    return _changes(task, child, was != now, was, now, None)


def confusions(evidence: Evidence, most: int) -> list[Confusion]:
    """The most frequent confusions."""
    wrong = evidence.counts.copy()
    np.fill_diagonal(wrong, 0)
    totals = evidence.counts.sum(axis=1)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    names = (*evidence.classes, ELSEWHERE)
    return [
        Confusion(
            evidence.classes[i], names[j], int(wrong[i, j]), float(wrong[i, j] / totals[i]), _rows(evidence, i, j)
        )
        for i, j in zip(*(place.tolist() for place in np.unravel_index(order, wrong.shape)), strict=True)
        if wrong[i, j]
    ]


def _rows(evidence: Evidence, truth: int, answer: int) -> tuple[int, ...]:
    """The images of one confusion, those of which the model was surest first."""
    given = answer if answer < len(evidence.classes) else -1
    rows = np.flatnonzero((evidence.labels == truth) & (evidence.answers == given))
    return tuple(rows[np.argsort(-evidence.sure[rows], kind="stable")].tolist())


def _bins(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> tuple[Bin, ...]:
    known = labels >= 0
    shares = metrics.probabilities(logits[known])
    confidence, hit = shares.max(axis=1), shares.argmax(axis=1) == labels[known]
    place = np.minimum((confidence * metrics.BINS).astype(int), metrics.BINS - 1)
    return tuple(
        Bin(float(confidence[place == b].mean()), float(hit[place == b].mean()), int((place == b).sum()))
        for b in range(metrics.BINS)
        if (place == b).any()
    )
