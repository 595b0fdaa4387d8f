"""The frontier against a brute force, and the three named choices."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskgraft.metrics import wilson_interval
from taskgraft.results.search import Candidate
from taskgraft.tuning.selection import choices, frontier


def one(trial: int, old: float, new: float) -> Candidate:
    return Candidate(
        trial=trial, method="distill", lr=0.1, old=wilson_interval(old, 100), new=wilson_interval(new, 100)
    )


POINTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=20)


@given(POINTS)
def test_the_frontier_is_what_nobody_surpasses(points: list[tuple[int, int]]) -> None:
    found = [one(i, old / 6, new / 6) for i, (old, new) in enumerate(points)]
    best = {
        (a.old.mean, a.new.mean)
        for a in found
        if not any(b.old.mean >= a.old.mean and b.new.mean >= a.new.mean and b != a
                   and (b.old.mean, b.new.mean) != (a.old.mean, a.new.mean) for b in found)
    }  # fmt: skip
    line = frontier(found)
    assert {(c.old.mean, c.new.mean) for c in line} == best
    assert len(line) == len(best)
    assert [c.new.mean for c in line] == sorted(c.new.mean for c in line)


def test_three_choices() -> None:
    found = [one(0, 0.70, 0.95), one(1, 0.745, 0.90), one(2, 0.75, 0.80), one(3, 0.60, 0.97)]
    score, new, old = choices(found, before=0.75, max_forgetting=0.01, min_new=0.9)
    assert [c.candidate and c.candidate.trial for c in (score, new, old)] == [0, 1, 1]
    none = choices(found, before=0.75, max_forgetting=0.0, min_new=0.99)
    assert none[1].candidate
    assert none[1].candidate.trial == 2
    assert none[2].candidate is None


def test_ties_go_to_the_earlier_trial() -> None:
    assert choices([one(5, 0.5, 0.5), one(2, 0.5, 0.5)], 0.5, 0.1, 0.1)[0].candidate == one(2, 0.5, 0.5)


def test_the_interval_is_wilsons() -> None:
    found = wilson_interval(0.9, 50)  # Newcombe 1998's method 3 for 45 of 50: 0.786 to 0.957
    assert (found.low, found.high) == (pytest.approx(0.7864, abs=1e-4), pytest.approx(0.9565, abs=1e-4))
    assert wilson_interval(1.0, 20).high == 1.0
    assert wilson_interval(0.0, 20).low == 0.0
