"""Cluster bootstrap: whole units (images, tracks, clips, blocks of time) are drawn with replacement.

Frames of one car are not independent: an interval from single frames is far too narrow (Davison and Hinkley 1997,
section 3.8, on resampling clusters).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MAX_IMAGES = 4000  # images of a replicate; of more, fewer units are drawn and the spread is scaled ("m out of n")
MAX_CELLS = 4_000_000  # numbers in one batch of replicates
Z = 1.959964  # normal, 97.5 %
MIN_EXPECTED = 5.0  # expected images below which a percentile of replicates says too little


class Replicates(NamedTuple):
    """Replicates on the same images: `rows` [n] of the sample, `weights` [r, n], each row summing to 1."""

    rows: NDArray[np.int64]
    weights: Floats


def resample(
    unit: NDArray[np.int64], weights: Floats, replicates: int, rng: np.random.Generator
) -> Iterator[Replicates]:
    """Draw bootstrap samples of whole units.

    Args:
        unit: the number of each image's unit [N], from 0.
        weights: the weight of each image [N].
        replicates: how many samples.
        rng: the source of randomness.
    """
    units, count = int(unit.max()) + 1, units_per_replicate(unit)
    if len(unit) <= MAX_IMAGES:
        rows = np.arange(len(unit))
        at_once = max(1, MAX_CELLS // len(unit))
        for first in range(0, replicates, at_once):
            times = rng.multinomial(units, np.full(units, 1 / units), size=min(at_once, replicates - first))
            yield Replicates(rows, _normalize(times[:, unit] * weights))
        return
    for _ in range(replicates):
        times = np.bincount(rng.integers(0, units, count), minlength=units)[unit]
        rows = np.flatnonzero(times)
        yield Replicates(rows, _normalize((times[rows] * weights[rows])[None]))


def units_per_replicate(unit: NDArray[np.int64]) -> int:
    """Return how many units a replicate contains."""
    units = int(unit.max()) + 1
    return units if len(unit) <= MAX_IMAGES else min(units, max(2, round(units * MAX_IMAGES / len(unit))))


def deviation_scale(unit: NDArray[np.int64]) -> float:
    """Return the factor for deviations of replicates: it corrects for m out of n units, and for few units at all."""
    units = int(unit.max()) + 1
    return (units_per_replicate(unit) / max(units - 1, 1)) ** 0.5


def effective_sample_size(naive: Floats, replicates: Floats, scale: float, units: int, images: int) -> float:
    """Return how many independent images would let the counted prevalence [K] vary as `replicates` [R, K] do.

    It is at most `images`.
    """
    if units == images:
        return float(images)
    independent = float((naive * (1 - naive)).sum())
    observed = float(replicates.var(axis=0).sum()) * scale**2
    if units < 2 or independent <= 0 or observed <= 0:
        return float(min(units, images))
    return float(min(independent / observed, images))


def confidence_limits(prevalence: Floats, replicates: Floats, scale: float, effective: float) -> tuple[Floats, Floats]:
    """Return 95 % limits of prevalences [K] from replicates [R, K]: percentiles, within [0, 1].

    For a class that few images have, not narrower than Wilson's interval (1927) for `effective` images: no replicate
    can have a class of which no image was seen.
    """
    scaled = prevalence + scale * (replicates - prevalence)
    low, high = np.quantile(scaled, [0.025, 0.975], axis=0)
    wilson_low, wilson_high = wilson_limits(prevalence, effective)
    rare = prevalence * effective < MIN_EXPECTED
    low = np.where(rare, np.minimum(low, wilson_low), low)
    high = np.where(rare, np.maximum(high, wilson_high), high)
    return np.clip(np.minimum(low, prevalence), 0, 1), np.clip(np.maximum(high, prevalence), 0, 1)


def wilson_limits(fraction: Floats | float, count: float) -> tuple[Floats, Floats]:
    """Return the 95 % score interval (Wilson 1927) of fractions [K] of `count` images; may leave [0, 1] by rounding."""
    square = Z**2 / count
    center = (fraction + square / 2) / (1 + square)
    half = Z / (1 + square) * np.sqrt(fraction * (1 - fraction) / count + square / (4 * count))
    return center - half, center + half


def _normalize(weights: Floats) -> Floats:
    return weights / weights.sum(axis=1, keepdims=True)
