"""Randomness as a function of place: nothing is drawn from a stream, so nothing has to be saved."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray


def derive(seed: int, *path: str | int) -> int:
    """A 63-bit seed for the place `path` under `seed`; equal arguments give equal seeds on every machine."""
    text = "/".join([str(seed), *(f"{type(part).__name__}:{part}" for part in path)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(seed: int, *path: str | int) -> np.random.Generator:
    """A NumPy generator for the place `path` under `seed`."""
    return np.random.Generator(np.random.Philox(key=derive(seed, *path)))


def uniform(key: int, *coordinates: NDArray[np.integer] | int) -> NDArray[np.float64]:
    """Numbers in [0, 1), each a pure function of `key` and its own coordinates (broadcast together).

    Draws keyed by image do not depend on how images are chunked. Source: SplitMix64's finaliser
    (Steele, Lea, Flood 2014).
    """
    with np.errstate(over="ignore"):  # wrapping is what a hash does
        state: NDArray[np.uint64] = np.asarray(key & (2**64 - 1), dtype=np.uint64)
        for coordinate in coordinates:
            state = _mix(state ^ _mix(np.asarray(coordinate).astype(np.uint64)))
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
