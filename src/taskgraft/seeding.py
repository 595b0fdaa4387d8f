"""Random numbers as functions of a seed and a purpose: no stream, so no state to save."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray


def derive(seed: int, *path: str | int) -> int:
    """Return a 63-bit seed for the purpose `path` under `seed`; the same on every machine."""
    text = "/".join([str(seed), *(f"{type(key).__name__}:{key}" for key in path)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(seed: int, *path: str | int) -> np.random.Generator:
    """Return a NumPy generator for the purpose `path` under `seed`."""
    return np.random.Generator(np.random.Philox(key=derive(seed, *path)))


def uniform(key: int, *coordinates: NDArray[np.integer] | int) -> NDArray[np.float64]:
    """Return numbers in [0, 1), each a pure function of `key` and its coordinates (broadcast together).

    Draws keyed by image do not depend on how images are batched. Source: the finalizer of SplitMix64 (Steele, Lea,
    Flood 2014).
    """
    with np.errstate(over="ignore"):  # wrapping is what a hash does
        state: NDArray[np.uint64] = np.asarray(key & (2**64 - 1), dtype=np.uint64)
        for coordinate in coordinates:
            state = splitmix64(state ^ splitmix64(np.asarray(coordinate).astype(np.uint64)))
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def splitmix64(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Mix 64 bits (SplitMix64 of Steele, Lea and Flood 2014; the constants are theirs)."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
