"""Randomness as a function of place. The pinned values must never change: old runs would not be found again."""

from __future__ import annotations

import numpy as np
import pytest

from taskgraft import seeding

PINNED_DERIVE = [4246866556266386882, 550493948931355949, 5388555001675837487]
PINNED_UNIFORM = [0.2584873639447234, 0.8316657775737076, 0.5060440944276413]
PINNED_ORDER = [4, 0, 7, 2, 1, 6, 5, 3]


def test_derive_is_pinned() -> None:
    assert [seeding.derive(0), seeding.derive(0, "order", 3), seeding.derive(7, "a")] == PINNED_DERIVE


def test_uniform_is_pinned() -> None:
    assert seeding.uniform(5, np.arange(3), 2).tolist() == PINNED_UNIFORM


def test_generator_is_pinned() -> None:
    assert seeding.generator(0, "order", 1).permutation(8).tolist() == PINNED_ORDER


def test_every_part_of_the_path_counts() -> None:
    places = [
        (0,),
        (1,),
        (0, 1),
        (0, "1"),
        (0, "a"),
        (0, "b"),
        (0, "a", "b"),
        (0, "b", "a"),
        (0, "ab"),
        (0, 0),
        (0, ""),
    ]
    result = [seeding.derive(*place) for place in places]
    assert len(set(result)) == len(places)
    assert all(0 <= value < 2**63 for value in result)
    assert result == [seeding.derive(*place) for place in places]


def test_generators_are_independent() -> None:
    one, two = (seeding.generator(0, "x", place).random(4000) for place in (1, 2))
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.06
    np.testing.assert_array_equal(one, seeding.generator(0, "x", 1).random(4000))


def test_uniform_does_not_depend_on_chunks() -> None:
    full = seeding.uniform(9, np.arange(100)[:, None], np.arange(7))
    assert full.shape == (100, 7)
    for size in (1, 3, 64):
        parts = [
            seeding.uniform(9, np.arange(s, min(s + size, 100))[:, None], np.arange(7)) for s in range(0, 100, size)
        ]
        np.testing.assert_array_equal(np.concatenate(parts), full)
    assert seeding.uniform(9, 42, 3) == full[42, 3]


def test_uniform_distinguishes_coordinates() -> None:
    assert seeding.uniform(1, 2, 3) != seeding.uniform(1, 3, 2)
    assert seeding.uniform(1, 2, 3) != seeding.uniform(2, 2, 3)
    assert seeding.uniform(1, 2) != seeding.uniform(1, 2, 0)


def test_keys_have_64_bits() -> None:
    keys = [5, 5 + 2**7, 5 + 2**32, 5 + 2**63]
    assert len({float(seeding.uniform(key, 1)) for key in keys}) == len(keys)
    assert seeding.uniform(5 + 2**64, 1) == seeding.uniform(5, 1)


@pytest.mark.parametrize("key", [0, 1, 2**63 - 1, seeding.derive(3, "view")])
def test_uniform_is_uniform(key: int) -> None:
    result = seeding.uniform(key, np.arange(300)[:, None], np.arange(100))
    assert result.min() >= 0
    assert result.max() < 1
    counts = np.histogram(result, bins=20, range=(0, 1))[0]
    assert ((counts - 1500) ** 2 / 1500).sum() < 50  # chi-squared of 19 degrees: beyond 50 once in 10,000 times
    assert abs(np.corrcoef(result[:-1].ravel(), result[1:].ravel())[0, 1]) < 0.03
    assert abs(np.corrcoef(result[:, :-1].ravel(), result[:, 1:].ravel())[0, 1]) < 0.03
