"""Successive halving, checked against a simulation that knows all scores beforehand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskgraft.tuning.halving import ETA, Progress, count_steps, largest_wave, next_promotions, rung_steps

RUNGS = (10, 40, 160)


@pytest.mark.parametrize(
    ("steps", "eval_every", "prune", "rungs"),
    [
        (1200, 50, True, (100, 150, 300, 600, 1200)),
        (1200, 50, False, (1200,)),
        (40, 20, True, (20, 40)),
        (10, 20, True, (10,)),
    ],
)
def test_rungs_are_validated_steps(steps: int, eval_every: int, prune: bool, rungs: tuple[int, ...]) -> None:
    assert rung_steps(steps, eval_every, prune) == rungs


def simulate(scores: Sequence[Mapping[int, float]], failing: set[int]) -> tuple[list[Progress], int]:
    """Train whatever is next, one trial at a time; return the progress of all trials and the steps it took."""
    wave, steps = [Progress({}) for _ in scores], 0
    while promotions := next_promotions(wave, RUNGS):
        position, until = promotions[0]
        reached = wave[position].scores
        steps += until - max(reached, default=0)
        failed = position in failing
        wave[position] = Progress(reached if failed else {**reached, until: scores[position][until]}, failed)
    return wave, steps


@given(st.lists(st.tuples(*[st.floats(0, 1)] * 3), min_size=1, max_size=40), st.sets(st.integers(0, 39), max_size=5))
def test_only_the_best_of_each_rung_are_promoted(rows: list[tuple[float, ...]], failing: set[int]) -> None:
    scores: list[dict[int, float]] = [dict(zip(RUNGS, row, strict=True)) for row in rows]
    wave, steps = simulate(scores, failing)
    alive = [trial for trial in range(len(rows)) if trial not in failing]
    reached = [[trial for trial in alive if until in wave[trial].scores] for until in RUNGS]
    assert reached[0] == alive
    for level in (1, 2):
        ranked = sorted(reached[level - 1], key=lambda trial: (-scores[trial][RUNGS[level - 1]], trial))
        assert sorted(reached[level]) == sorted(ranked[: len(reached[level])])
        assert len(reached[level]) <= max(1, len(rows) // ETA**level)
    if alive:
        assert reached[-1]
    if not failing:
        assert steps == count_steps(len(rows), RUNGS)


def test_a_wave_of_failed_trials_is_complete() -> None:
    assert next_promotions([Progress({}, True), Progress({}, True)], (1, 2)) == []


def test_a_rung_waits_for_its_last_trial() -> None:
    wave = [Progress({10: 0.5}), Progress({10: 0.9}), Progress({10: 0.1}), Progress({})]
    assert next_promotions(wave, (10, 40)) == [(3, 10)]
    assert next_promotions([*wave[:3], Progress({10: 0.2})], (10, 40)) == [(1, 40), (0, 40)]


def test_the_budget_limits_the_wave() -> None:
    assert largest_wave(count_steps(9, RUNGS), 20, RUNGS) == 9
    assert largest_wave(1.0, 20, RUNGS) == 1
    assert largest_wave(1e9, 20, RUNGS) == 20
