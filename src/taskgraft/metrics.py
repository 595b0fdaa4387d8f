"""Metrics of predictions: accuracy, Score, agreement, calibration, intervals. Without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from math import sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from taskgraft import seeding
from taskgraft.results.predictions import Predictions
from taskgraft.results.record import Interval, StepMetrics

RESAMPLES = 2000  # percentile intervals move by less than a tenth of their width beyond this
UNEVEN = 1.5  # times as many images in the largest class as in the smallest, from which balanced accuracy is shown
TOP_5_CLASSES = 10  # from which top-5 accuracy is shown: with fewer, guessing is right more often than not
BINS = 15  # of the expected calibration error, as in Guo et al. 2017

# Student's t, 97.5 %, by degrees of freedom: three to ten seeds are the usual case
_T975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


class ClassBalance(NamedTuple):
    """What accuracy hides where classes are uneven.

    Attributes:
        chance: Accuracy of always predicting the most frequent class; 1 / classes where all images are of one class.
        majority: The most frequent class.
        balanced: Mean accuracy over the classes that have images (balanced accuracy).
        uneven: Whether the largest class has more than `UNEVEN` times the images of the smallest.
        never_predicted: Classes that have images, but are predicted for none at all.
    """

    chance: float
    majority: str
    balanced: float
    uneven: bool
    never_predicted: tuple[str, ...]


def predicted_classes(predictions: Predictions, task: str) -> NDArray[np.int64]:
    """Return the predicted class of each image [N].

    Under a joint softmax the prediction for an old task is -1 where it is not the argmax over all outputs: a user of
    the parent still takes the one largest output. The newest task is evaluated on its own outputs.
    """
    logits = predictions.logits[task]
    best = logits.argmax(axis=1)
    if predictions.softmax == "per-task" or task == list(predictions.logits)[-1]:
        return best
    highest = np.concatenate(list(predictions.logits.values()), axis=1).max(axis=1)
    return np.where(logits.max(axis=1) >= highest, best, -1)


def correct(predictions: Predictions, task: str) -> NDArray[np.float64]:
    """Return 1.0 or 0.0 for each image labeled for `task`: whether its prediction is correct."""
    labels = predictions.labels[task]
    return (predicted_classes(predictions, task) == labels)[labels >= 0].astype(np.float64)


def accuracy(predictions: Predictions, task: str) -> float:
    """Return the fraction of labeled images predicted correctly, in [0, 1].

    Raises:
        ValueError: No image is labeled for the task.
    """
    hits = correct(predictions, task)
    if not len(hits):
        raise ValueError(f"no image is labeled for task {task!r}: nothing to measure")
    return float(hits.mean())


def agreement(parent: Predictions, child: Predictions, task: str) -> NDArray[np.float64]:
    """Return 1.0 where child and parent predict the same class of an old task, else 0.0; [images].

    An answer that a class added by the child takes is a change. Images of added classes are left out: the parent cannot
    be right about them.
    """
    same = predicted_classes(parent, task) == predicted_classes(child, task)
    if task in child.labels:
        same = same[child.labels[task] < parent.logits[task].shape[1]]
    return same.astype(np.float64)


def bootstrap_interval(values: NDArray[np.float64], seed: int = 0) -> Interval:
    """Return the mean of per-image values [N] with a 95 % percentile bootstrap interval over images (Efron 1979).

    Pass paired differences for the interval of a difference.
    """
    n = len(values)
    if not n:
        raise ValueError("an interval needs at least one value")
    rng = seeding.generator(seed, "bootstrap")
    if np.isin(values, (-1.0, 0.0, 1.0)).all():  # counts suffice, and cost nothing for large n
        fractions = [(values == level).mean() for level in (-1.0, 0.0, 1.0)]
        counts = rng.multinomial(n, fractions, size=RESAMPLES)
        means = (counts[:, 2] - counts[:, 0]) / n
    else:
        means = np.array([values[rng.integers(0, n, n)].mean() for _ in range(RESAMPLES)])
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(mean=float(values.mean()), low=float(low), high=float(high), n=n)


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and half-width of the 95 % t-interval over seeds; the half-width is NaN for a single seed."""
    mean = float(np.mean(values))
    free = len(values) - 1
    if free < 1:
        return mean, float("nan")
    t = _T975[free - 1] if free <= len(_T975) else 1.96 + 2.5 / free
    return mean, t * float(np.std(values, ddof=1)) / sqrt(len(values))


def score(
    history: Sequence[StepMetrics], tasks: Sequence[str], *, with_agreement: bool = False
) -> tuple[float, int] | None:
    """Return the Score and its step: the peak of the tasks' mean accuracy over evaluated steps.

    Step 0 does not count, and of equal steps the first. None if no step measured all of `tasks`, or there are none.
    `with_agreement`: agreement with the parent stands in for the accuracy of a task without validation images.
    """
    best: tuple[float, int] | None = None
    for line in history:
        values = {**(line.agreement if with_agreement else {}), **line.accuracy}
        if tasks and line.step > 0 and all(task in values for task in tasks):
            mean = float(np.mean([values[task] for task in tasks]))
            if best is None or mean > best[0]:
                best = mean, line.step
    return best


def probabilities(logits: NDArray[np.float32], temperature: float = 1.0) -> NDArray[np.float64]:
    """Compute the softmax of logits [N, K] at a temperature > 0."""
    shifted = logits.astype(np.float64) / temperature
    shifted -= shifted.max(axis=1, keepdims=True)
    powers = np.exp(shifted)
    return powers / powers.sum(axis=1, keepdims=True)


def expected_calibration_error(
    logits: NDArray[np.float32], labels: NDArray[np.int64], temperature: float = 1.0
) -> float:
    """Compute the expected calibration error in [0, 1] with equal-width bins (Guo et al. 2017, equation 3).

    Raises:
        ValueError: No image is labeled.
    """
    labeled = labels >= 0
    if not labeled.any():
        raise ValueError("calibration needs labeled images")
    p = probabilities(logits[labeled], temperature)
    confidence, hit = p.max(axis=1), p.argmax(axis=1) == labels[labeled]
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = [
        abs(hit[bins == b].mean() - confidence[bins == b].mean()) * (bins == b).mean()
        for b in range(BINS)
        if (bins == b).any()
    ]
    return float(sum(gaps))


def confusion_matrix(predictions: Predictions, task: str) -> NDArray[np.int64]:
    """Return counts [K, K + 1] of true by predicted class; the last column counts predictions lost to another task."""
    labels, size = predictions.labels[task], len(predictions.classes[task])
    counts = np.zeros((size, size + 1), dtype=np.int64)
    labeled = labels >= 0
    np.add.at(counts, (labels[labeled], predicted_classes(predictions, task)[labeled]), 1)  # -1 is the last column
    return counts


def chance_accuracy(labels: NDArray[np.int64], classes: int) -> float:
    """Return the accuracy of always predicting the most frequent class; 1 / classes where all images are of one class.

    Args:
        labels: Class of each image [N], -1 = not labeled.
        classes: Number of classes that can be predicted.
    """
    counts = np.unique(labels[labels >= 0], return_counts=True)[1]
    return float(counts.max() / counts.sum()) if len(counts) > 1 else 1 / classes


def class_balance(predictions: Predictions, task: str) -> ClassBalance:
    """Return what accuracy hides where classes are uneven.

    Raises:
        ValueError: No image is labeled for the task.
    """
    confusion, names = confusion_matrix(predictions, task), predictions.classes[task]
    counts = confusion.sum(axis=1)
    present = np.flatnonzero(counts)
    if not len(present):
        raise ValueError(f"no image is labeled for task {task!r}: nothing to measure")
    recall = confusion.diagonal()[present] / counts[present]
    return ClassBalance(
        chance=chance_accuracy(predictions.labels[task], len(names)),
        majority=names[counts.argmax()],
        balanced=float(recall.mean()),
        uneven=bool(counts[present].max() > UNEVEN * counts[present].min()),
        never_predicted=tuple(names[row] for row in present if not confusion[:, row].any()),
    )


def macro_f1(predictions: Predictions, task: str) -> float:
    """Return the mean F1 over the classes that have images or are predicted, as scikit-learn's macro average.

    Raises:
        ValueError: No image is labeled for the task.
    """
    confusion = confusion_matrix(predictions, task)
    if not confusion.any():
        raise ValueError(f"no image is labeled for task {task!r}: nothing to measure")
    hits, total = confusion.diagonal(), confusion.sum(axis=1) + confusion[:, :-1].sum(axis=0)
    return float((2 * hits[total > 0] / total[total > 0]).mean())


def top_5(predictions: Predictions, task: str) -> float | None:
    """Return how often the right class is among the five highest; None for fewer than `TOP_5_CLASSES` classes.

    Under a joint softmax the classes of all tasks compete for the five places, as for `predicted_classes`.
    """
    logits, labels = predictions.logits[task], predictions.labels[task]
    if logits.shape[1] < TOP_5_CLASSES or not (labels >= 0).any():
        return None
    joint = predictions.softmax != "per-task" and task != list(predictions.logits)[-1]
    rivals = np.concatenate(list(predictions.logits.values()), axis=1) if joint else logits
    rows = np.flatnonzero(labels >= 0)
    higher = (rivals[rows] > logits[rows, labels[rows]][:, None]).sum(axis=1)
    return float((higher < 5).mean())


def gap(score: float, separate: Mapping[str, float]) -> float:
    """Return how far one model's Score is below the mean accuracy of separate models, in [-1, 1]."""
    return float(np.mean(list(separate.values()))) - score


def wilson_interval(mean: float, count: int, z: float = 1.959964) -> Interval:
    """Return a fraction of `count` images with its score interval (Wilson 1927); 95 % at the default quantile `z`."""
    center = (mean + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(mean * (1 - mean) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return Interval(mean=mean, low=max(0.0, center - half), high=min(1.0, center + half), n=count)
