"""Temperatures: the right one is found, what it brings is not flattered."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from taskgraft import calibration, metrics


def drawn(count: int, factor: float, seed: int = 0, classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are `factor` times too large, and labels drawn from the true probabilities."""
    rng = np.random.default_rng(seed)
    honest = rng.normal(0, 2, (count, classes)).astype(np.float32)
    shares = metrics.probabilities(honest)
    labels = np.array([rng.choice(classes, p=row) for row in shares])
    return (factor * honest).astype(np.float32), labels


@pytest.mark.parametrize("factor", [0.4, 1.0, 3.0])
def test_fit_temperature_recovers_truth(factor: float) -> None:
    logits, labels = drawn(4000, factor)
    assert calibration.fit_temperature(logits, labels) == pytest.approx(factor, rel=0.06)


def test_fit_temperature_is_a_minimum() -> None:
    logits, labels = drawn(300, 2.0)
    best = calibration.fit_temperature(logits, labels)
    penalty = {t: np.log(t) ** 2 / 2 / len(labels) for t in (best, 0.99 * best, 1.01 * best)}
    losses = {t: calibration.nll(logits, labels, t) + penalty[t] for t in penalty}
    assert min(losses, key=lambda t: losses[t]) == best


def test_nll_is_cross_entropy() -> None:
    logits, labels = drawn(50, 1.0)
    preprocessing = cross_entropy(torch.from_numpy(logits) / 1.7, torch.from_numpy(labels))
    assert calibration.nll(logits, labels, 1.7) == pytest.approx(float(preprocessing), rel=1e-5)


def test_perfect_model_has_finite_temperature() -> None:
    labels = np.arange(100) % 4
    logits = 6 * np.eye(4, dtype=np.float32)[labels]
    result = calibration.fit_temperature(logits, labels)
    assert calibration.MIN_TEMPERATURE < result < 1


def test_cross_fitting() -> None:
    logits, labels = drawn(400, 3.0)
    result = calibration.calibrate(logits, labels)
    assert result is not None
    assert result.images == 400
    assert result.error_after < 0.5 * result.error_before
    assert result.loss_after < result.loss_before
    # a temperature always lowers the loss on the images that chose it; on others it need not
    worse = 0
    for seed in range(40):
        noise, targets = drawn(24, 1.0, seed)
        honest = calibration.calibrate(noise, targets)
        assert honest is not None
        assert calibration.nll(noise, targets, honest.temperature) <= honest.loss_before + 0.02
        worse += honest.loss_after > honest.loss_before
    assert worse > 5


def test_calibrate_needs_labeled_images() -> None:
    logits, labels = drawn(60, 2.0)
    mixed = np.where(np.arange(60) < 30, labels, -1)
    result, alone = calibration.calibrate(logits, mixed), calibration.calibrate(logits[:30], labels[:30])
    assert result == alone
    assert calibration.calibrate(logits[:19], labels[:19]) is None
