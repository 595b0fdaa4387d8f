"""Temperature scaling, one temperature per task: fitted on validation images and cross-validated. Without torch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from taskgraft import metrics, seeding

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
TOLERANCE = 1e-5  # of log T
MIN_IMAGES = 20  # labeled images below which nothing is fitted
GOLDEN = (5**0.5 - 1) / 2


class Calibration(NamedTuple):
    """A temperature with loss and error before and after; "after" is on images that it was not fitted on."""

    temperature: float
    images: int
    loss_before: float  # mean negative log-likelihood, in nats
    loss_after: float
    error_before: float  # expected calibration error, in [0, 1]
    error_after: float


def fit_temperature(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Return the temperature T > 0 that minimizes the loss of labels [N] under softmax(logits [N, K] / T).

    Golden-section search over log T for the negative log-likelihood, which is convex in 1/T. A penalty (log T)^2 / 2 on
    the sum over images keeps T finite where every image is predicted correctly; for a hundred images it is negligible.
    Source: Guo et al. 2017.
    """

    def loss(log_t: float) -> float:
        return len(labels) * nll(logits, labels, float(np.exp(log_t))) + log_t**2 / 2

    low, high = float(np.log(MIN_TEMPERATURE)), float(np.log(MAX_TEMPERATURE))
    left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    at_left, at_right = loss(left), loss(right)
    while high - low > TOLERANCE:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - GOLDEN * (high - low)
            at_left = loss(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + GOLDEN * (high - low)
            at_right = loss(right)
    return float(np.exp((low + high) / 2))


def nll(logits: NDArray[np.float32], labels: NDArray[np.int64], temperature: float = 1.0) -> float:
    """Compute the mean negative log-likelihood of labels [N] under softmax(logits [N, K] / temperature), in nats."""
    scaled = logits.astype(np.float64) / temperature
    scaled -= scaled.max(axis=1, keepdims=True)
    chosen = np.take_along_axis(scaled, labels[:, None], axis=1)[:, 0]
    return float((np.log(np.exp(scaled).sum(axis=1)) - chosen).mean())


def calibrate(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> Calibration | None:
    """Fit a temperature on all labeled images (labels >= 0); None where there are fewer than MIN_IMAGES.

    Its effect is measured by two-fold cross-fitting: each half at the temperature fitted on the other.
    """
    labeled = labels >= 0
    logits, labels = logits[labeled], labels[labeled]
    if len(labels) < MIN_IMAGES:
        return None
    scaled = cross_fitted(logits, labels)
    return Calibration(
        fit_temperature(logits, labels),
        len(labels),
        nll(logits, labels),
        nll(scaled, labels),
        metrics.expected_calibration_error(logits, labels),
        metrics.expected_calibration_error(scaled, labels),
    )


def cross_fitted(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return logits [N, K], each half divided by the temperature fitted on the other half; all are labeled."""
    half = np.zeros(len(labels), bool)
    half[seeding.generator(0, "calibration").permutation(len(labels))[: len(labels) // 2]] = True
    scaled = logits.copy()
    for fold in (half, ~half):
        scaled[fold] = logits[fold] / np.float32(fit_temperature(logits[~fold], labels[~fold]))
    return scaled
