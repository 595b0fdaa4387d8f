"""What a search offers: the Pareto frontier of old and new accuracy, and three named choices on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from taskgraft.results.search import Candidate, Goal


class Choice(NamedTuple):
    """A candidate and what it is the best of; none where nothing fulfils the condition."""

    goal: Goal
    rule: str
    candidate: Candidate | None


def frontier(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates that no other one surpasses in both accuracies, by rising new accuracy; equals are kept once."""
    best: list[Candidate] = []
    for one in sorted(candidates, key=lambda c: (-c.new.mean, -c.old.mean, c.trial)):
        if not best or one.old.mean > best[-1].old.mean:
            best.append(one)
    return best[::-1]


def choices(candidates: Sequence[Candidate], before: float, max_forgetting: float, min_new: float) -> list[Choice]:
    """The three named choices; `before` is the parent's old accuracy (1 where agreement stands in for it).

    Ties go to the earlier trial.
    """
    kept = [c for c in candidates if before - c.old.mean <= max_forgetting + 1e-9]
    able = [c for c in candidates if c.new.mean >= min_new - 1e-9]
    return [
        Choice("score", "best Score", _first(candidates, lambda c: c.score)),
        Choice(
            "new",
            f"best new accuracy with at most {max_forgetting:.1%} forgotten",
            _first(kept, lambda c: c.new.mean),
        ),
        Choice("old", f"least forgotten with at least {min_new:.0%} new accuracy", _first(able, lambda c: c.old.mean)),
    ]


def _first(candidates: Sequence[Candidate], value: Callable[[Candidate], float]) -> Candidate | None:
    return max(candidates, key=lambda c: (value(c), c.score, -c.trial), default=None)
