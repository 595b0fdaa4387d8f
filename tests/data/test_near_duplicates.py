"""Near duplicates: what is found, what is not, and that looking at bands misses no pair that all pairs would give."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from taskgraft.data import near_duplicates


def thumbs(count: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(
        0, 256, (count, near_duplicates.SIDE, near_duplicates.SIDE, 3), np.uint8
    )


def test_strangers_are_no_twins() -> None:
    assert len(near_duplicates.find_near_duplicates(thumbs(400)).pairs) == 0
    assert len(near_duplicates.find_near_duplicates(thumbs(0)).pairs) == 0


def test_every_close_pair_is_found() -> None:
    """Against all pairs, by the definition: bits of the hash, then colours."""
    rng = np.random.default_rng(1)
    base = thumbs(60)
    noisy = np.clip(base.astype(int) + rng.normal(0, 4, base.shape), 0, 255).astype(np.uint8)
    every = np.concatenate([base, noisy, noisy[:5]])
    gray = every.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    bits = np.concatenate(
        [(gray[:, :, 1:] > gray[:, :, :-1]).reshape(len(every), -1),
         (gray[:, 1:] > gray[:, :-1]).reshape(len(every), -1)], axis=1)  # fmt: skip
    expected = {
        (one, two)
        for one in range(len(every))
        for two in range(one + 1, len(every))
        if (bits[one] != bits[two]).sum() <= near_duplicates.BITS
        and np.abs(every[one].astype(int) - every[two]).mean() <= near_duplicates.COLOR
    }
    assert len(expected) > 40
    assert {tuple(pair) for pair in near_duplicates.find_near_duplicates(every).pairs.tolist()} == expected


def test_groups_hang_together() -> None:
    pairs = np.array([[0, 4], [4, 7], [2, 3]])
    assert near_duplicates.group_pairs(pairs) == [[0, 4, 7], [2, 3]]
    assert near_duplicates.group_pairs(np.empty((0, 2), np.int64)) == []


def test_a_crowd_ends_soon() -> None:
    same = np.repeat(
        thumbs(1), near_duplicates.MAX_GROUP + 1, axis=0
    )  # more equal thumbnails than are compared pair by pair
    assert len(near_duplicates.find_near_duplicates(same).pairs) == 0
    assert len(near_duplicates.find_near_duplicates(same[:300]).pairs) == 300 * 299 // 2
