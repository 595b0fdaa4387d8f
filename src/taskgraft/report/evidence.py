"""What predictions say image by image: confusions, worst classes, changed answers, calibration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from taskgraft import calibration, metrics
from taskgraft.calibration import Calibration
from taskgraft.record import Predictions, TaskResult

ELSEWHERE = "(another task's class)"  # under a joint softmax


class Bin(NamedTuple):
    """Images whose confidence is alike: mean confidence, accuracy, how many."""

    confidence: float
    accuracy: float
    images: int


class Change(NamedTuple):
    """An image whose answer changed from parent to child; `truth` is "" where nobody labelled it."""

    name: str
    truth: str
    before: str
    after: str


class ClassResult(NamedTuple):
    """One class of a task; `parent` is None for a new task."""

    name: str
    images: int
    child: float
    parent: float | None
    mistaken: str  # the most frequent wrong answer


class Evidence(NamedTuple):
    """Everything measured on a task's labelled validation images."""

    task: str
    classes: tuple[str, ...]
    counts: NDArray[np.int64]  # [K, K + 1], as metrics.confusion
    results: tuple[ClassResult, ...]
    bins: tuple[Bin, ...]
    calibration: float
    fitted: Calibration | None  # a temperature; None with too few images
    calibrated: tuple[Bin, ...]  # each half of the images under the temperature that the other half chose
    lost: tuple[Change, ...]  # right before, wrong now
    gained: int  # wrong before, right now


def gather(task: TaskResult, predictions: Mapping[str, Predictions]) -> Evidence | None:
    """The evidence on one task; None without labelled images."""
    for key in ("new", "old") if task.new else ("old", "new"):
        child, of = predictions.get(key), task.of or task.name
        if child is not None and _labelled(child, of) and (task.new or child.labels[of].max() < len(task.classes)):
            parent = predictions.get(f"{key}-parent")
            usable = not task.new and parent is not None and of in parent.logits and parent.ids == child.ids
            return _measure(of, child, parent if usable else None)._replace(task=task.name)
    return None


def _labelled(predictions: Predictions, task: str) -> bool:
    labels = predictions.labels.get(task)
    return task in predictions.logits and labels is not None and bool((labels >= 0).any())


def _measure(task: str, child: Predictions, parent: Predictions | None) -> Evidence:
    labels = child.labels[task]
    counts = metrics.confusion(child, task)
    before = None
    if parent is not None:  # its file may carry no labels: they are the child's
        before = metrics.confusion(parent._replace(labels={task: labels}), task)
    lost, gained = _lost(task, child, parent) if parent is not None else ((), 0)
    known = labels >= 0
    fitted = calibration.calibrate(child.logits[task], labels)
    scaled = calibration.cross_fitted(child.logits[task][known], labels[known]) if fitted else None
    return Evidence(
        task,
        child.classes[task],
        counts,
        _results(child.classes[task], counts, before),
        _bins(child.logits[task], labels),
        metrics.calibration_error(child.logits[task], labels),
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


def _lost(task: str, child: Predictions, parent: Predictions) -> tuple[tuple[Change, ...], int]:
    labels = child.labels[task]
    was, now = metrics.answers(parent, task), metrics.answers(child, task)
    known = labels >= 0
    lost = known & (was == labels) & (now != labels)
    gained = known & (was != labels) & (now == labels)
    return tuple(_change(task, child, int(i), was, now, labels) for i in np.flatnonzero(lost)), int(gained.sum())


def _change(
    task: str,
    child: Predictions,
    i: int,
    was: NDArray[np.int64],
    now: NDArray[np.int64],
    labels: NDArray[np.int64] | None,
) -> Change:
    names = (*child.classes[task], ELSEWHERE)  # -1 is the last
    truth = names[labels[i]] if labels is not None else ""
    return Change(child.ids[i], truth, names[was[i]], names[now[i]])


def disagreements(task: str, predictions: Mapping[str, Predictions]) -> tuple[Change, ...]:
    """The new task's images on which child and parent differ about an old task, whatever is right."""
    child, parent = predictions.get("new"), predictions.get("new-parent")
    if child is None or parent is None or task not in child.logits or task not in parent.logits:
        return ()
    if parent.ids != child.ids:
        return ()
    known = child.logits[task][:, : parent.logits[task].shape[1]]  # classes added since cannot agree
    was, now = (
        metrics.answers(parent, task),
        metrics.answers(child._replace(logits={**child.logits, task: known}), task),
    )
    return tuple(_change(task, child, int(i), was, now, None) for i in np.flatnonzero(was != now))


def confusions(evidence: Evidence, most: int) -> list[tuple[str, str, int, float]]:
    """The most frequent confusions: true class, answer, images, share of the true class's images."""
    wrong = evidence.counts.copy()
    np.fill_diagonal(wrong, 0)
    totals = evidence.counts.sum(axis=1)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    names = (*evidence.classes, ELSEWHERE)
    pairs = [(int(i), int(j)) for i, j in zip(*np.unravel_index(order, wrong.shape), strict=True)]
    return [
        (evidence.classes[i], names[j], int(wrong[i, j]), float(wrong[i, j] / totals[i]))
        for i, j in pairs
        if wrong[i, j]
    ]


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
