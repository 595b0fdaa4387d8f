"""Shares from posteriors: expectation-maximisation (EMQ), adjusted counts (PACC, ACC). Pure functions of arrays.

Shapes: N images, K classes, R replicates (rows of weights that are solved together). QuaPy's EMQ, PACC and ACC are the
oracles of the tests; its own solvers take neither weights nor a card, and for 196 classes a second or more each.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

FLOOR = 1e-12  # of a posterior: no class is ever impossible


def em(
    posteriors: Floats,
    prior: Floats,
    weights: Floats,
    start: Floats | None = None,
    most: int = 2000,
    enough: float = 1e-7,
) -> Floats:
    """Maximum-likelihood shares [R, K] of images whose posteriors [N, K] were calibrated under shares `prior` [K].

    q <- sum_n w_n q p_n / prior / (sum of the same over classes), for each row of `weights` [R, N] (each sums to 1),
    until no share moves by `enough`. Saerens, Latinne, Decaestecker 2002.
    """
    ratio = np.maximum(posteriors, FLOOR) / prior
    shares = np.tile(prior / prior.sum(), (len(weights), 1)) if start is None else start
    for _ in range(most):
        moved = shares * ((weights / (shares @ ratio.T)) @ ratio)
        gap = float(np.abs(moved - shares).max())
        shares = moved
        if gap < enough:
            break
    return shares / shares.sum(axis=1, keepdims=True)


def em_pair(
    first: tuple[Floats, Floats], second: tuple[Floats, Floats], weights: Floats, start: Floats, most: int = 500
) -> Floats:
    """Shares [K1, K2] of pairs from two tasks' (posteriors [N, K], prior [K]), by the same iteration.

    The errors of the two tasks are taken to be independent given the true pair: the likelihood of a pair is the
    product of the tasks'. `weights` [N] sum to 1.
    """
    one, two = (np.maximum(posteriors, FLOOR) / prior for posteriors, prior in (first, second))
    shares = start
    for _ in range(most):
        total = ((one @ shares) * two).sum(axis=1)
        moved = shares * (one.T @ (two * (weights / total)[:, None]))
        gap = float(np.abs(moved - shares).max())
        shares = moved
        if gap < 1e-6:
            break
    return shares / shares.sum()


def adjust(lrs: Floats, answered: Floats, most: int = 3000, enough: float = 1e-9) -> Floats:
    """Shares [R, K] on the simplex that explain mean answers best: minimise ||shares @ rates - answered||^2.

    `rates` [K, J]: mean answer of the images of each class (rows sum to 1); `answered` [R, J]. With mean posteriors
    that is PACC (Bella et al. 2010), with frequencies of answers ACC (Forman 2008), solved as Bunse 2022 recommends,
    by accelerated projected gradient (Beck and Teboulle 2009).
    """
    step = 1.0 / float(np.linalg.norm(lrs, ord=2)) ** 2  # of the largest singular value: no step is too far
    shares = project(answered[:, : len(lrs)])
    ahead, pace = shares, 1.0
    for _ in range(most):
        moved = project(ahead - step * ((ahead @ lrs - answered) @ lrs.T))
        faster = (1 + (1 + 4 * pace**2) ** 0.5) / 2
        ahead = moved + (pace - 1) / faster * (moved - shares)
        gap = float(np.abs(moved - shares).max())
        shares, pace = moved, faster
        if gap < enough:
            break
    return shares


def adjust_pair(first: Floats, second: Floats, answered: Floats, most: int = 500, enough: float = 1e-6) -> Floats:
    """Shares [K1, K2] of pairs from mean answers [J1, J2] to two tasks, as in `adjust`.

    `first` [K1, J1] and `second` [K2, J2] are the tasks' own rates. Errors are independent given the true pair, so the
    rates of pairs are the Kronecker product of the two: it is applied along one axis after the other, never made.
    """
    step = 1.0 / float(np.linalg.norm(first, ord=2) * np.linalg.norm(second, ord=2)) ** 2
    shares = np.outer(answered.sum(axis=1)[: len(first)], answered.sum(axis=0)[: len(second)])
    shares = ahead = project(shares.reshape(1, -1)).reshape(shares.shape)
    pace = 1.0
    for _ in range(most):
        moved = ahead - step * (first @ (first.T @ ahead @ second - answered) @ second.T)
        moved = project(moved.reshape(1, -1)).reshape(moved.shape)
        faster = (1 + (1 + 4 * pace**2) ** 0.5) / 2
        ahead = moved + (pace - 1) / faster * (moved - shares)
        gap = float(np.abs(moved - shares).max())
        shares, pace = moved, faster
        if gap < enough:
            break
    return shares


def project(points: Floats) -> Floats:
    """The nearest points [R, K] of the simplex (Duchi et al. 2008)."""
    ordered = -np.sort(-points, axis=1)
    sums = np.cumsum(ordered, axis=1) - 1
    places = np.arange(1, points.shape[1] + 1)
    last = (ordered - sums / places > 0).sum(axis=1) - 1
    return np.maximum(points - (sums[np.arange(len(points)), last] / (last + 1))[:, None], 0)
