"""Which trials go on, checked against a simulation that knows all scores beforehand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hypothesis import given
from hypothesis import strategies as st

from taskgraft.tuning.halving import ETA, Due, Seen, cost, due, fitting, rungs


def test_rungs_lie_on_evaluated_steps() -> None:
    assert rungs(1200, 50, True) == (100, 150, 300, 600, 1200)
    assert rungs(1200, 50, False) == (1200,)
    assert rungs(40, 20, True) == (20, 40)
    assert rungs(10, 20, True) == (10,)


def run_out(truth: Sequence[Mapping[int, float]], steps: tuple[int, ...], failing: set[int]) -> tuple[list[Seen], int]:
    """Do whatever is due, one piece at a time, until nothing is; and count the steps that it took."""
    seen, spent = [Seen({}) for _ in truth], 0
    while todo := due(seen, steps):
        place, until = todo[0]
        before = max(seen[place].scores, default=0)
        spent += until - before
        failed = place in failing
        scores = dict(seen[place].scores) if failed else {**seen[place].scores, until: truth[place][until]}
        seen[place] = Seen(scores, failed)
    return seen, spent


@given(st.lists(st.tuples(*[st.floats(0, 1)] * 3), min_size=1, max_size=40), st.sets(st.integers(0, 39), max_size=5))
def test_the_best_of_each_rung_go_on_and_nobody_else(scores: list[tuple[float, ...]], failing: set[int]) -> None:
    steps: tuple[int, ...] = (10, 40, 160)
    truth: list[dict[int, float]] = [dict(zip(steps, row, strict=True)) for row in scores]
    seen, spent = run_out(truth, steps, failing)
    alive = [place for place in range(len(truth)) if place not in failing]
    for level, until in enumerate(steps):
        there = [place for place in alive if until in seen[place].scores]
        if level:
            before = [place for place in alive if steps[level - 1] in seen[place].scores]
            best = sorted(before, key=lambda place: (-truth[place][steps[level - 1]], place))
            assert sorted(there) == sorted(best[: len(there)])
            assert len(there) <= max(1, len(truth) // ETA**level)
        else:
            assert there == alive
    if alive:
        assert any(steps[-1] in one.scores for one in seen)  # some trial is always run to the end
    if not failing:
        assert spent == cost(len(truth), steps)


def test_all_failed_is_over() -> None:
    assert due([Seen({}, True), Seen({}, True)], (1, 2)) == []


def test_a_place_that_waits_holds_the_rung() -> None:
    wave = [Seen({10: 0.5}), Seen({10: 0.9}), Seen({10: 0.1}), Seen({})]
    assert due(wave, (10, 40)) == [Due(3, 10)]
    assert due([*wave[:3], Seen({10: 0.2})], (10, 40)) == [Due(1, 40), Due(0, 40)]


def test_a_budget_decides_the_size_of_a_wave() -> None:
    steps = (10, 40, 160)
    assert fitting(cost(9, steps), 20, steps) == 9
    assert fitting(1.0, 20, steps) == 1
    assert fitting(1e9, 20, steps) == 20
