"""The Pareto front against brute force, and the selected models."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskgraft.metrics import wilson_interval
from taskgraft.results.search import Candidate
from taskgraft.tuning.outcome import pareto_front, select


def candidate(trial: int, old: float, new: float) -> Candidate:
    return Candidate(
        trial=trial, method="distill", lr=0.1, old=wilson_interval(old, 100), new=wilson_interval(new, 100)
    )


def selected_trials(candidates: list[Candidate], **conditions: float) -> list[int | None]:
    return [model.candidate and model.candidate.trial for model in select(candidates, before=0.75, **conditions)]


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=20))
def test_the_pareto_front_is_not_dominated(points: list[tuple[int, int]]) -> None:
    front = pareto_front([candidate(trial, old / 6, new / 6) for trial, (old, new) in enumerate(points)])
    expected = {p for p in points if not any(q[0] >= p[0] and q[1] >= p[1] and q != p for q in points)}
    assert [(c.old.mean, c.new.mean) for c in front] == [
        (old / 6, new / 6) for old, new in sorted(expected, key=lambda point: point[1])
    ]


def test_models_are_selected_by_score_and_by_condition() -> None:
    candidates = [
        candidate(0, 0.70, 0.95),
        candidate(1, 0.745, 0.90),
        candidate(2, 0.75, 0.80),
        candidate(3, 0.6, 0.97),
    ]
    assert selected_trials(candidates, max_forgetting=0.01, min_new=0.9) == [0, 1, 1]
    assert selected_trials(candidates, max_forgetting=0.0, min_new=0.99) == [0, 2, None]


def test_ties_go_to_the_earlier_trial() -> None:
    candidates = [candidate(5, 0.7, 0.5), candidate(2, 0.7, 0.5)]
    assert selected_trials(candidates, max_forgetting=0.1, min_new=0.1) == [2, 2, 2]


def test_intervals_are_wilsons() -> None:
    interval = wilson_interval(0.9, 50)  # Newcombe 1998's method 3 for 45 of 50: 0.786 to 0.957
    assert (interval.low, interval.high) == (pytest.approx(0.7864, abs=1e-4), pytest.approx(0.9565, abs=1e-4))
    assert wilson_interval(1.0, 20).high == 1.0
    assert wilson_interval(0.0, 20).low == 0.0
