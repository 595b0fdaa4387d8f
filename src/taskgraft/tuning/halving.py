"""Successive halving (Jamieson and Talwalkar 2016): train many a little, the best of them further.

A pure function of what was reached: every worker plans the same, and a stopped search goes on as if it had not been.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

ETA = 2  # of so many trials one goes on
LEVELS = 5  # the first comparison is after 1 / ETA^4 of the steps


class Seen(NamedTuple):
    """What one trial of a wave has reached: its score at each step where it was stopped. Failed ones go no further."""

    scores: Mapping[int, float]
    failed: bool = False


class Due(NamedTuple):
    """A trial of the wave, by its place, and up to which step it is to be trained."""

    place: int
    until: int


def rungs(steps: int, every: int, halve: bool) -> tuple[int, ...]:
    """The steps at which trials are compared, ascending, multiples of `every` but for the last, which is `steps`."""
    if not halve:
        return (steps,)
    levels = [steps / ETA**level for level in range(LEVELS - 1, 0, -1)]
    early = {max(every, round(level / every) * every) for level in levels}
    return (*sorted(step for step in early if step < steps), steps)


def due(wave: Sequence[Seen], steps: Sequence[int]) -> list[Due]:
    """What is still to be done of a wave before anything beyond it may begin; nothing when the wave is over."""
    running = list(range(len(wave)))
    for until in steps:
        alive = [place for place in running if not wave[place].failed]
        waiting = [Due(place, until) for place in alive if until not in wave[place].scores]
        if waiting:
            return waiting
        best = sorted(alive, key=lambda place: (-wave[place].scores[until], place))
        running = best[: max(1, len(running) // ETA)]
    return []


def cost(count: int, steps: Sequence[int]) -> int:
    """Steps of training that a wave of so many trials takes when none fails."""
    total, before = 0, 0
    for until in steps:
        total += count * (until - before)
        before, count = until, max(1, count // ETA)
    return total


def fitting(limit: float, most: int, steps: Sequence[int]) -> int:
    """The largest wave up to `most` trials that costs no more than `limit` steps; one at least."""
    return max((count for count in range(1, most + 1) if cost(count, steps) <= limit), default=1)
