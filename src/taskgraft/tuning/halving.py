"""Successive halving (Jamieson and Talwalkar 2016): train many trials briefly and the better half of them longer.

What to train next is a pure function of the scores, so a search that was interrupted resumes as if it had not been.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

ETA = 2  # one of so many trials is promoted to the next rung
RUNGS = 5  # the first rung is at 1 / ETA^4 of the steps


class Progress(NamedTuple):
    """What a trial has achieved: its score at each completed rung. A failed trial is not promoted."""

    scores: Mapping[int, float]
    failed: bool = False


class Promotion(NamedTuple):
    """A trial, by its position in the wave, and the step up to which it is to be trained."""

    position: int
    until: int


def rung_steps(steps: int, eval_every: int, prune: bool) -> tuple[int, ...]:
    """Return the steps at which trials are compared.

    Args:
        steps: Full number of training steps.
        eval_every: Steps between validations; every rung but the last is a multiple of it.
        prune: Whether there are rungs before the last.

    Returns:
        Ascending steps, the last being `steps`.
    """
    if not prune:
        return (steps,)
    targets = [steps / ETA**level for level in range(RUNGS - 1, 0, -1)]
    early = {max(eval_every, round(target / eval_every) * eval_every) for target in targets}
    return (*sorted(step for step in early if step < steps), steps)


def next_promotions(wave: Sequence[Progress], rungs: Sequence[int]) -> list[Promotion]:
    """Return what to train now; the next rung starts once the current one is complete.

    Args:
        wave: Progress of each trial of the wave.
        rungs: Steps of the rungs, ascending.

    Returns:
        The trials that the current rung still waits for; empty when the wave is complete.
    """
    promoted = list(range(len(wave)))
    for until in rungs:
        alive = [index for index in promoted if not wave[index].failed]
        waiting = [Promotion(index, until) for index in alive if until not in wave[index].scores]
        if waiting:
            return waiting
        ranked = sorted(alive, key=lambda index: (-wave[index].scores[until], index))
        promoted = ranked[: max(1, len(promoted) // ETA)]
    return []


def count_steps(trials: int, rungs: Sequence[int]) -> int:
    """Return the training steps that a wave of `trials` takes if none fails."""
    total, start = 0, 0
    for until in rungs:
        total += trials * (until - start)
        start, trials = until, max(1, trials // ETA)
    return total


def largest_wave(max_steps: float, max_trials: int, rungs: Sequence[int]) -> int:
    """Return the largest number of trials in [1, `max_trials`] that takes at most `max_steps`; at least 1."""
    sizes = range(1, max_trials + 1)
    return max((size for size in sizes if count_steps(size, rungs) <= max_steps), default=1)
