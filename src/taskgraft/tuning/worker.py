"""What a worker of a search does: look what is due, take a piece, train it, note the result; until nothing is left."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

from taskgraft.pipeline.fitting import Opened
from taskgraft.pipeline.request import Request
from taskgraft.tuning import halving, sampler, space
from taskgraft.tuning.halving import Seen
from taskgraft.tuning.queue import (
    Piece,
    Queue,
    alive,
    claim,
    finish,
    finished,
    open_queue,
    pieces,
    publish,
    put,
    release,
    revive,
)
from taskgraft.tuning.sampler import Suggestion
from taskgraft.tuning.space import Space
from taskgraft.tuning.trial import OutOfTime, attempt
from taskgraft.types import Callbacks

PAUSE = 1.0  # seconds until a worker looks again when others hold everything that is due


class Search(NamedTuple):
    """Everything that decides a search, and where it lies. Plain values: workers get it as it is."""

    request: Request
    space: Space
    sampler: str
    points: int  # of a grid, for each open interval
    trials: int  # at most so many; 0 = until the time is up
    wave: int  # trials that are asked for, and compared, together
    rungs: tuple[int, ...]
    out: Path
    storage: str = ""
    study: str = ""
    cache: Path | None = None
    share: bool = True
    track: str = ""
    deadline: float | None = None  # on the steady clock that all processes of a machine share


class Wanted(NamedTuple):
    """A piece that is due and that nobody has put into the queue yet."""

    wave: int
    place: int
    until: int
    suggestion: Suggestion


def identity(search: Search, marks: dict[str, Any]) -> dict[str, Any]:
    """What must be equal for a search to be the same: how it asks, and `marks` of parent and images."""
    return {
        "space": space.show(search.space),
        "method": search.space.fixed,
        "config": search.space.config.__dict__,
        "sampler": [search.sampler, search.points, search.wave, list(search.rungs)],
        **marks,
    }


def work(search: Search, queue: Queue, opened: Opened, callbacks: Callbacks) -> None:
    """Take pieces until the search is over or its time is up."""
    while search.deadline is None or time.monotonic() < search.deadline:
        for piece in revive(queue):
            callbacks.info(f"trial {number_of(search, piece)}: its worker died; it goes on from its last checkpoint")
        wanted, over = due(search, queue)
        if over:
            return
        for one in wanted:
            put(queue, one.wave, one.place, one.until, one.suggestion)
        piece = claim(queue)
        if piece is None:
            time.sleep(PAUSE)
            continue
        with alive(queue, piece):
            result = _tried(search, queue, opened, piece, callbacks)
        if result is None:
            return
        finish(queue, piece, result)
        callbacks.info(describe(number_of(search, piece), result))


def due(search: Search, queue: Queue) -> tuple[list[Wanted], bool]:
    """The pieces that are to be put into the queue now, and whether the search is over."""
    known, wave = pieces(queue), 0
    while True:
        own = [piece for piece in known if piece.wave == wave]
        size = size_of(search, wave)
        if size == 0:
            return [], True
        asked = {piece.place: Suggestion(piece.params, piece.system) for piece in own}
        if len(asked) < size:
            fresh = ask(search, queue, wave, size)
            return [Wanted(wave, p, search.rungs[0], fresh[p]) for p in range(size) if p not in asked], False
        todo = halving.due([seen(own, place) for place in range(size)], search.rungs)
        if todo:
            there = {(piece.place, piece.until) for piece in own if piece.state != "dead"}
            return [Wanted(wave, *d, asked[d.place]) for d in todo if d not in there], False
        for place in range(size):
            last = max((p for p in own if p.place == place and p.result), key=lambda p: p.until)
            publish(queue, search.space, last, {**(last.result or {}), "history": [], "until": last.until})
        wave += 1


def size_of(search: Search, wave: int) -> int:
    """How many trials a wave has; 0 beyond the last."""
    if search.sampler == "grid":
        return len(space.grid(search.space, search.points)) if wave == 0 else 0
    return search.wave if not search.trials else max(0, min(search.wave, search.trials - wave * search.wave))


def ask(search: Search, queue: Queue, wave: int, size: int) -> list[Suggestion]:
    """The trials of a wave: cells of the grid, or what the sampler makes of the waves before."""
    if search.sampler == "grid":
        return [Suggestion(params, {}) for params in space.grid(search.space, search.points)]
    seed = search.space.config.seed
    return sampler.suggest(search.space, search.sampler, finished(queue, wave), wave, size, seed, search.wave)


def seen(own: list[Piece], place: int) -> Seen:
    """What the trial at a place of a wave has reached so far."""
    done = [piece for piece in own if piece.place == place and piece.result]
    failed = any(piece.result["reason"] is not None for piece in done if piece.result)
    scores = {piece.until: piece.result["score"] for piece in done if piece.result and piece.result["reason"] is None}
    return Seen(scores, failed)


def number_of(search: Search, piece: Piece) -> int:
    """The number of a trial over all waves."""
    return piece.wave * search.wave + piece.place


def folder_of(search: Search, number: int) -> Path:
    """Where a trial's run lies."""
    return search.out / "trials" / f"{number:04d}"


def describe(number: int, result: dict[str, Any]) -> str:
    """One plain line on a piece that is done."""
    if result["reason"] is not None:
        return f"trial {number}: {result['method']}: failed: {result['reason']}"
    return (
        f"trial {number}: {result['method']}, rate {result['config']['lr']:g}, step {result['reached']}: "
        f"old {result['old']:.1%} new {result['new']:.1%} Score {100 * result['score']:.1f}"
    )


def queue_of(search: Search, marks: dict[str, Any]) -> Queue:
    """The queue of a search; raises TaskgraftError where it belongs to another."""
    return open_queue(search.storage, search.study or search.out.resolve().name, search.out, identity(search, marks))


def _tried(search: Search, queue: Queue, opened: Opened, piece: Piece, callbacks: Callbacks) -> dict[str, Any] | None:
    """What came of a piece; None where the time was up. Whatever stops it, the piece waits again."""
    method, config = space.applied(search.space, piece.params)
    number = number_of(search, piece)
    callbacks.info(f"trial {number}: {method}, rate {config.lr:g}, to step {piece.until}")
    try:
        return attempt(
            opened, method, config, folder_of(search, number), piece.until,
            shared=search.out / "shared" if search.share else None,
            cache=search.cache, deadline=search.deadline, track=search.track,
            callbacks=callbacks._replace(info=lambda line: None),
        )  # fmt: skip
    except OutOfTime:
        release(queue, piece)
        return None
    except BaseException:
        release(queue, piece)
        raise
