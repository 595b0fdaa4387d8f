"""Which images a replicate holds: units (images, tracks, clips, blocks of time) drawn with replacement, whole.

Frames of one car are not independent: an interval from single frames is far too narrow (Davison and Hinkley 1997,
section 3.8, on resampling clusters).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MOST = 4000  # images of a replicate; of more, fewer units are drawn and the spread is scaled ("m out of n")
CELLS = 4_000_000  # numbers of one batch of replicates
Z = 1.959964  # normal, 97.5 %
SMALL = 5.0  # expected images below which a percentile of replicates says too little


class Draw(NamedTuple):
    """Replicates on the same images: `rows` [n] of the sample, `weights` [r, n], each row summing to 1."""

    rows: NDArray[np.int64]
    weights: Floats


def draws(unit: NDArray[np.int64], weights: Floats, replicates: int, rng: np.random.Generator) -> Iterator[Draw]:
    """`replicates` bootstrap samples of whole units; `unit` [N] numbers the unit of each image from 0."""
    units, count = int(unit.max()) + 1, drawn_units(unit)
    if len(unit) <= MOST:
        rows = np.arange(len(unit))
        at_once = max(1, CELLS // len(unit))
        for first in range(0, replicates, at_once):
            times = rng.multinomial(units, np.full(units, 1 / units), size=min(at_once, replicates - first))
            yield Draw(rows, _normal(times[:, unit] * weights))
        return
    for _ in range(replicates):
        times = np.bincount(rng.integers(0, units, count), minlength=units)[unit]
        rows = np.flatnonzero(times)
        yield Draw(rows, _normal((times[rows] * weights[rows])[None]))


def drawn_units(unit: NDArray[np.int64]) -> int:
    """How many units a replicate holds."""
    units = int(unit.max()) + 1
    return units if len(unit) <= MOST else min(units, max(2, round(units * MOST / len(unit))))


def spread(unit: NDArray[np.int64]) -> float:
    """What deviations of replicates are multiplied by: for fewer units than there are, and for few units at all."""
    units = int(unit.max()) + 1
    return (drawn_units(unit) / max(units - 1, 1)) ** 0.5


def effective_size(naive: Floats, replicates: Floats, scale: float, units: int, images: int) -> float:
    """So many independent images would let the counted shares [K] vary as `replicates` [R, K] do; at most `images`."""
    if units == images:
        return float(images)
    alone = float((naive * (1 - naive)).sum())
    seen = float(replicates.var(axis=0).sum()) * scale**2
    if units < 2 or alone <= 0 or seen <= 0:
        return float(min(units, images))
    return float(min(alone / seen, images))


def bounds(shares: Floats, replicates: Floats, scale: float, effective: float) -> tuple[Floats, Floats]:
    """95 % limits of shares [K] from replicates [R, K]: percentiles, within [0, 1].

    For a class that few images have, not narrower than Wilson's interval (1927) for `effective` images: no replicate
    can show a class of which no image was met.
    """
    moved = shares + scale * (replicates - shares)
    low, high = np.quantile(moved, [0.025, 0.975], axis=0)
    square = Z**2 / effective
    middle = (shares + square / 2) / (1 + square)
    half = Z / (1 + square) * np.sqrt(shares * (1 - shares) / effective + square / (4 * effective))
    few = shares * effective < SMALL
    low = np.where(few, np.minimum(low, middle - half), low)
    high = np.where(few, np.maximum(high, middle + half), high)
    return np.clip(np.minimum(low, shares), 0, 1), np.clip(np.maximum(high, shares), 0, 1)


def _normal(weights: Floats) -> Floats:
    return weights / weights.sum(axis=1, keepdims=True)
