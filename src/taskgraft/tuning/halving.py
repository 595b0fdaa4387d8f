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


def rung_steps(steps: int, eval_every: int, prune: bool) -> tuple[int, ...]:
    """Return the steps at which trials are compared, ascending, the last being `steps`.

    Every rung but the last is a multiple of `eval_every`; without `prune` the last is the only one.
    """
    if not prune:
        return (steps,)
    targets = [steps / ETA**level for level in range(RUNGS - 1, 0, -1)]
    early = {max(eval_every, round(target / eval_every) * eval_every) for target in targets}
    return (*sorted(step for step in early if step < steps), steps)


def next_promotions(wave: Sequence[Progress], rungs: Sequence[int]) -> list[tuple[int, int]]:
    """Return what to train now; the next rung starts once the current one is complete.

    Args:
        wave: Progress of each trial of the wave.
        rungs: Steps of the rungs, ascending.

    Returns:
        Index and step of each trial that the current rung is missing; empty when the wave is complete.
    """
    promoted = list(range(len(wave)))
    for until in rungs:
        active = [index for index in promoted if not wave[index].failed]
        missing = [(index, until) for index in active if until not in wave[index].scores]
        if missing:
            return missing
        ranked = sorted(active, key=lambda index: (-wave[index].scores[until], index))
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
