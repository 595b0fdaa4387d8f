"""Turn by turn: every rival once a round, in another order each, so that the machine's moods fall on all alike."""

from __future__ import annotations

import contextlib
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.speed.worker import House, Refused, Worker, ask, start, stop

FEWEST, MOST = 3, 15  # rounds


class Rival(NamedTuple):
    """Who is measured: a name, the house it lives in, "module:function" that prepares it, and what it is told."""

    name: str
    house: str
    maker: str
    options: Mapping[str, Any] = {}


class Plan(NamedTuple):
    """How much is measured. `seconds` is what the rounds of one case may take, `turn` what one turn should."""

    seconds: float
    turn: float
    quick: bool = False


def open_houses(houses: Sequence[House], plan: Plan) -> dict[str, Worker]:
    """A worker for each house; toy sizes share this process where they need no other Python."""
    own = House("here").python
    return {house.name: start(house, here=plan.quick and house.python == own) for house in houses}


def close_houses(workers: Mapping[str, Worker]) -> None:
    """End all workers."""
    for worker in workers.values():
        stop(worker)


def measure(
    rivals: Sequence[Rival], workers: Mapping[str, Worker], case: Mapping[str, Any], plan: Plan,
    reference: str, say: Callable[[str], None], absent: Mapping[str, str],
) -> list[dict[str, Any]]:  # fmt: skip
    """A row for each rival: images a second (median, lowest, highest, turns) and its rate against `reference`.

    `absent` tells why a house could not be opened. A rival that fails keeps its row, with the reason.
    """
    errors = {rival.name: absent[rival.house] for rival in rivals if rival.house in absent}
    chosen: dict[str, dict[str, Any]] = {}
    calls: dict[str, int] = {}
    for rival in rivals:
        if rival.name in errors:
            continue
        say(f"  preparing {rival.name}")
        told = {**case, **rival.options}
        try:
            worker = workers[rival.house]
            chosen[rival.name] = ask(worker, do="prepare", key=rival.name, maker=rival.maker, case=told)
            once = ask(worker, do="turn", key=rival.name, calls=1)["seconds"]  # chooses kernels, grows the heap
            if once < plan.turn:
                once = ask(worker, do="turn", key=rival.name, calls=1)["seconds"]
            calls[rival.name] = max(1, min(200, round(plan.turn / max(once, 1e-6))))
        except Refused as reason:
            errors[rival.name] = str(reason)
            say(f"  {rival.name}: {reason}")
    lrs = _rounds(rivals, workers, plan, calls, errors)
    for worker in workers.values():
        with contextlib.suppress(Refused):  # a house that died has been reported with its rivals
            ask(worker, do="clear")
    return [_row(rival, lrs.get(rival.name, []), lrs.get(reference, []), chosen, errors) for rival in rivals]


def _rounds(
    rivals: Sequence[Rival],
    workers: Mapping[str, Worker],
    plan: Plan,
    calls: Mapping[str, int],
    errors: dict[str, str],
) -> dict[str, list[float]]:
    lrs: dict[str, list[float]] = {rival.name: [] for rival in rivals}
    begin, done = time.monotonic(), 0
    fewest, most = (1, 1) if plan.quick else (FEWEST, MOST)
    while done < fewest or (done < most and time.monotonic() - begin < plan.seconds * done / (done + 1)):
        # who follows another process finds cold caches: always being the first of a round once cost 10 %
        for rival in random.Random(done).sample(rivals, len(rivals)):
            if rival.name in errors:
                continue
            try:
                turn = ask(workers[rival.house], do="turn", key=rival.name, calls=calls[rival.name])
                lrs[rival.name].append(turn["images"] / turn["seconds"])
            except Refused as reason:
                errors[rival.name] = str(reason)
                lrs[rival.name] = []
        done += 1
    return lrs


def _row(
    rival: Rival,
    lrs: Sequence[float],
    reference: Sequence[float],
    chosen: Mapping[str, dict[str, Any]],
    errors: Mapping[str, str],
) -> dict[str, Any]:
    row: dict[str, Any] = {"rival": rival.name, "house": rival.house, **chosen.get(rival.name, {})}
    if rival.name in errors:
        return row | {"error": errors[rival.name]}
    row |= {"unit": "images/s", **spread(lrs)}
    if reference:
        shares = [mine / other for mine, other in zip(lrs, reference, strict=True)]
        row["share"] = round(statistics.median(shares), 4)
        row["shares"] = [round(min(shares), 4), round(max(shares), 4)]
    return row


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, lowest, highest and count."""
    return {
        "median": _short(statistics.median(values)),
        "low": _short(min(values)),
        "high": _short(max(values)),
        "turns": len(values),
    }


def _short(value: float) -> float:
    """Four significant digits: more is noise."""
    return float(f"{value:.4g}")
