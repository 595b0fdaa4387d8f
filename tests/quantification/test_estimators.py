"""The estimators against QuaPy's, which is the reference of the field, and against shares that are known."""

from __future__ import annotations

import numpy as np
import pytest

from taskgraft.quantification.estimators import (
    estimate_adjusted,
    estimate_emq,
    estimate_joint_adjusted,
    estimate_joint_emq,
    project_to_simplex,
)


def posteriors(count: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated posteriors under equal shares, and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, size, count)
    centres = 2.0 * np.eye(size)
    seen = centres[labels] + rng.normal(0, 1, (count, size))
    logs = seen @ centres.T  # the log-likelihood of unit Gaussians, up to what all classes share
    shares = np.exp(logs - logs.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True), labels


def shifted(labels: np.ndarray, preprocessing: np.ndarray, count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(preprocessing), count, p=preprocessing)
    return np.array([rng.choice(np.flatnonzero(labels == k)) for k in chosen])


WANTED = np.array([0.7, 0.05, 0.2, 0.05])


def test_em_is_quapys_and_finds_the_shares() -> None:
    from quapy.method.aggregative import EMQ

    shares, labels = posteriors(6000, 4, 0)
    rows = shifted(labels, WANTED, 3000, 1)
    prior = np.full(4, 0.25)
    ours = estimate_emq(shares[rows], prior, np.full((1, 3000), 1 / 3000))[0]
    theirs, _ = EMQ.EM(prior, shares[rows], epsilon=1e-8)
    assert ours == pytest.approx(theirs, abs=1e-5)
    assert np.abs(ours - WANTED).max() < 0.03
    naive = np.bincount(shares[rows].argmax(axis=1), minlength=4) / 3000
    assert np.abs(ours - WANTED).mean() < 0.6 * np.abs(naive - WANTED).mean()


def test_weights_are_repetitions() -> None:
    shares, _ = posteriors(40, 3, 2)
    times = np.arange(40) % 3
    repeated = np.repeat(shares, times, axis=0)
    prior = np.array([0.5, 0.3, 0.2])
    one = estimate_emq(shares, prior, (times / times.sum())[None])
    two = estimate_emq(repeated, prior, np.full((1, len(repeated)), 1 / len(repeated)))
    assert one == pytest.approx(two, abs=1e-9)


def test_adjusted_counts_are_quapys() -> None:
    from quapy.method.aggregative import ACC, PACC

    shares, labels = posteriors(2000, 4, 3)
    lrs = PACC.getPteCondEstim(np.arange(4), labels, shares)
    rows = shifted(labels, WANTED, 1500, 4)
    mean = shares[rows].mean(axis=0)
    theirs = ACC.solve_adjustment(lrs, mean, method="inversion", solver="minimize")
    ours = estimate_adjusted(lrs.T, mean[None])[0]
    assert ours == pytest.approx(theirs, abs=2e-3)  # theirs stops earlier
    assert np.linalg.norm(ours @ lrs.T - mean) <= np.linalg.norm(theirs @ lrs.T - mean) + 1e-9


def test_answers_beyond_the_simplex_are_explained_by_its_edge() -> None:
    lrs = np.array([[0.9, 0.1], [0.2, 0.8]])
    assert estimate_adjusted(lrs, np.array([[0.95, 0.05]]))[0] == pytest.approx([1, 0])
    assert estimate_adjusted(lrs, np.array([[0.9, 0.1], [0.55, 0.45]])) == pytest.approx(np.array([[1, 0], [0.5, 0.5]]))


def test_projections_lie_on_the_simplex_and_are_nearest() -> None:
    rng = np.random.default_rng(5)
    points = rng.normal(0, 1, (50, 6))
    result = project_to_simplex(points)
    assert result.min() >= 0
    assert result.sum(axis=1) == pytest.approx(np.ones(50))
    others = rng.dirichlet(np.ones(6), 500)
    distances = np.linalg.norm(points[:, None] - others, axis=2).min(axis=1)
    assert (np.linalg.norm(points - result, axis=1) <= distances + 1e-9).all()


def test_pairs_that_go_together_are_seen() -> None:
    one, first = posteriors(8000, 3, 6)
    two, second = posteriors(8000, 2, 7)
    joint = np.array([[0.4, 0.0], [0.1, 0.2], [0.0, 0.3]])
    rng = np.random.default_rng(8)
    cells = rng.choice(6, 3000, p=joint.ravel())
    rows = np.array([rng.choice(np.flatnonzero(first == cell // 2)) for cell in cells])
    columns = np.array([rng.choice(np.flatnonzero(second == cell % 2)) for cell in cells])
    weights, prior = np.full(3000, 1 / 3000), (np.full(3, 1 / 3), np.full(2, 0.5))
    result = estimate_joint_emq((one[rows], prior[0]), (two[columns], prior[1]), weights, np.outer(*prior))
    assert np.abs(result - joint).max() < 0.03
    lrs = [np.stack([s[k == c].mean(axis=0) for c in range(s.shape[1])]) for s, k in ((one, first), (two, second))]
    answered = one[rows].T @ (two[columns] * weights[:, None])
    adjusted = estimate_joint_adjusted(lrs[0], lrs[1], answered)
    assert np.abs(adjusted - joint).max() < 0.04
    assert np.abs(answered - joint).max() > 0.06
