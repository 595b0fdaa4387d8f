"""Prevalence from posteriors: expectation maximization (EMQ) and adjusted counts (PACC, ACC). Pure functions.

Shapes: N images, K classes, R replicates (rows of weights that are solved together). QuaPy's EMQ, PACC and ACC are the
oracles of the tests; its own solvers take neither weights nor a card, and for 196 classes a second or more each.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

FLOOR = 1e-12  # of a posterior: no class is ever impossible


def estimate_emq(
    posteriors: Floats,
    prior: Floats,
    weights: Floats,
    start: Floats | None = None,
    max_iterations: int = 2000,
    tolerance: float = 1e-7,
) -> Floats:
    """Return the maximum-likelihood prevalence [R, K] of images whose posteriors [N, K] hold under `prior` [K] (EMQ).

    q <- sum_n w_n q p_n / prior / (sum of the same over classes), for each row of `weights` [R, N] (each sums to 1),
    until no entry changes by `tolerance`. Saerens, Latinne, Decaestecker 2002.
    """
    ratio = np.maximum(posteriors, FLOOR) / prior
    prevalence = np.tile(prior / prior.sum(), (len(weights), 1)) if start is None else start
    for _ in range(max_iterations):
        updated = prevalence * ((weights / (prevalence @ ratio.T)) @ ratio)
        change = float(np.abs(updated - prevalence).max())
        prevalence = updated
        if change < tolerance:
            break
    return prevalence / prevalence.sum(axis=1, keepdims=True)


def estimate_joint_emq(
    first: tuple[Floats, Floats],
    second: tuple[Floats, Floats],
    weights: Floats,
    start: Floats,
    max_iterations: int = 500,
) -> Floats:
    """Return the prevalence [K1, K2] of pairs from two tasks' (posteriors [N, K], prior [K]), by the same iteration.

    The errors of the two tasks are taken to be independent given the true pair: the likelihood of a pair is the
    product of the tasks'. `weights` [N] sum to 1.
    """
    ratio_a, ratio_b = (np.maximum(posteriors, FLOOR) / prior for posteriors, prior in (first, second))
    prevalence = start
    for _ in range(max_iterations):
        total = ((ratio_a @ prevalence) * ratio_b).sum(axis=1)
        updated = prevalence * (ratio_a.T @ (ratio_b * (weights / total)[:, None]))
        change = float(np.abs(updated - prevalence).max())
        prevalence = updated
        if change < 1e-6:
            break
    return prevalence / prevalence.sum()


def estimate_adjusted(rates: Floats, observed: Floats, max_iterations: int = 3000, tolerance: float = 1e-9) -> Floats:
    """Return the prevalence [R, K] that explains mean outputs best: minimizes ||prevalence @ rates - observed||^2.

    `rates` [K, J]: mean output for the images of each class (rows sum to 1); `observed` [R, J]. With mean posteriors
    that is PACC (Bella et al. 2010), with frequencies of predicted classes ACC (Forman 2008), solved as Bunse 2022
    recommends.
    """
    step = 1.0 / float(np.linalg.norm(rates, ord=2)) ** 2  # of the largest singular value: no step is too far

    def gradient(prevalence: Floats) -> Floats:
        return (prevalence @ rates - observed) @ rates.T

    return _minimize_on_simplex(gradient, observed[:, : len(rates)], step, max_iterations, tolerance)


def estimate_joint_adjusted(
    first: Floats, second: Floats, observed: Floats, max_iterations: int = 500, tolerance: float = 1e-6
) -> Floats:
    """Return the prevalence [K1, K2] of pairs from mean outputs [J1, J2] of two tasks, as in `estimate_adjusted`.

    `first` [K1, J1] and `second` [K2, J2] are the tasks' own rates. Errors are independent given the true pair, so the
    rates of pairs are the Kronecker product of the two: it is applied along one axis after the other, never built.
    """
    step = 1.0 / float(np.linalg.norm(first, ord=2) * np.linalg.norm(second, ord=2)) ** 2
    start = np.outer(observed.sum(axis=1)[: len(first)], observed.sum(axis=0)[: len(second)])

    def gradient(prevalence: Floats) -> Floats:
        residual = first.T @ prevalence.reshape(start.shape) @ second - observed
        return (first @ residual @ second.T).reshape(1, -1)

    return _minimize_on_simplex(gradient, start.reshape(1, -1), step, max_iterations, tolerance).reshape(start.shape)


def _minimize_on_simplex(
    gradient: Callable[[Floats], Floats], start: Floats, step: float, max_iterations: int, tolerance: float
) -> Floats:
    """Accelerated projected gradient descent (Beck and Teboulle 2009) from `start` [R, K]."""
    prevalence = lookahead = project_to_simplex(start)
    momentum = 1.0
    for _ in range(max_iterations):
        updated = project_to_simplex(lookahead - step * gradient(lookahead))
        next_momentum = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        lookahead = updated + (momentum - 1) / next_momentum * (updated - prevalence)
        change = float(np.abs(updated - prevalence).max())
        prevalence, momentum = updated, next_momentum
        if change < tolerance:
            break
    return prevalence


def project_to_simplex(points: Floats) -> Floats:
    """Return the nearest points [R, K] of the probability simplex (Duchi et al. 2008)."""
    ordered = -np.sort(-points, axis=1)
    sums = np.cumsum(ordered, axis=1) - 1
    counts = np.arange(1, points.shape[1] + 1)
    last = (ordered - sums / counts > 0).sum(axis=1) - 1
    return np.maximum(points - (sums[np.arange(len(points)), last] / (last + 1))[:, None], 0)
