"""Requests that come at the same time are answered by one pass of the model, after a short wait for more of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from taskgraft.serving.limits import Limits, Refusal
from taskgraft.serving.model import Answer, Run, Served

PACE = 32  # images over which the time of one is averaged: batches even out, a change of load is soon seen


class Asked(NamedTuple):
    """Pixels [n, S, S, 3] of one request, and where its answer goes."""

    pixels: NDArray[np.uint8]
    answer: asyncio.Future[Answer]


@dataclass(frozen=True)
class Batcher:
    """The queue before the model; one thread runs it.

    `load` counts images let in and not answered yet; `pace` holds the mean time from one answered image to the next
    while there is work ("seconds"), and when the last one was answered or the work began ("since").
    """

    run: Run
    limits: Limits
    queue: asyncio.Queue[Asked]
    thread: ThreadPoolExecutor
    load: dict[str, int]
    pace: dict[str, float]
    note: Callable[[int], None]  # told the size of every batch


def batcher(served: Served, limits: Limits, note: Callable[[int], None]) -> Batcher:
    """A batcher that nobody has asked yet."""
    pace = {"seconds": 0.0, "since": 0.0}
    return Batcher(served.run, limits, asyncio.Queue(), served.thread, {"images": 0}, pace, note)


def check(waiting: Batcher, count: int) -> None:
    """Raise Refusal 429 where `count` more images find no place, or those before them take too long.

    How long they take is their number times the mean time between answers (Little's law).
    """
    limits, before = waiting.limits, waiting.load["images"]
    if before + count > limits.max_queue or before * waiting.pace["seconds"] > limits.wait_seconds:
        raise Refusal(429, "too many images are waiting; try again", retry=1)


@contextmanager
def admitted(waiting: Batcher, count: int) -> Iterator[None]:
    """Hold a place for `count` images; raises Refusal 422 for too many at once, 429 as `check` does."""
    limits, load = waiting.limits, waiting.load
    if count > limits.max_batch:
        raise Refusal(422, f"{count} images in one request; at most {limits.max_batch} are taken")
    check(waiting, count)
    if not load["images"]:
        waiting.pace["since"] = time.monotonic()
    load["images"] += count
    try:
        yield
        _keep_pace(waiting, count)  # only for what was answered: an image that is none would count as a quick one
    finally:
        load["images"] -= count


def _keep_pace(waiting: Batcher, count: int) -> None:
    pace, now = waiting.pace, time.monotonic()
    took = (now - pace["since"]) / count
    share = min(1.0, count / PACE) if pace["seconds"] else 1.0
    pace["seconds"] += share * (took - pace["seconds"])
    pace["since"] = now


async def ask(waiting: Batcher, pixels: NDArray[np.uint8]) -> Answer:
    """The model's logits on pixels [n, S, S, 3]; raises Refusal 503 where they take too long."""
    answer = asyncio.get_running_loop().create_future()
    waiting.queue.put_nowait(Asked(pixels, answer))
    try:
        return await asyncio.wait_for(answer, waiting.limits.request_seconds)
    except TimeoutError:
        raise Refusal(503, f"no answer within {waiting.limits.request_seconds:g} s", retry=5) from None


async def work(waiting: Batcher) -> None:
    """Answer forever: gather a batch, run the model, hand out the rows. Where it fails, each is asked about alone."""
    left: list[Asked] = []
    while True:
        batch = [entry for entry in await _gathered(waiting, left) if not entry.answer.done()]
        error = await _answered(waiting, batch) if batch else None
        if error is None:
            continue
        for entry in batch:  # what the model stumbles over, or has no memory for, must not fail its batch mates
            reason = error if len(batch) == 1 else await _answered(waiting, [entry])
            if reason is not None and not entry.answer.done():
                entry.answer.set_exception(reason)


async def _answered(waiting: Batcher, batch: list[Asked]) -> Exception | None:
    """Run the model on a batch and hand out the rows; whatever the runtime raises is returned."""
    pixels = np.concatenate([entry.pixels for entry in batch])
    waiting.note(len(pixels))
    try:
        found = await asyncio.get_running_loop().run_in_executor(waiting.thread, waiting.run, pixels)
    except Exception as error:  # it must reach those who wait, and not end the loop
        return error
    start = 0
    for entry in batch:
        stop = start + len(entry.pixels)
        if not entry.answer.done():
            entry.answer.set_result({task: logits[start:stop] for task, logits in found.items()})
        start = stop
    return None


async def _gathered(waiting: Batcher, left: list[Asked]) -> list[Asked]:
    """The next batch: as many as fit, and no wait where nobody else is on the way. `left` keeps what did not fit."""
    batch = [left.pop() if left else await waiting.queue.get()]
    count = len(batch[0].pixels)
    loop = asyncio.get_running_loop()
    end = loop.time() + waiting.limits.max_delay / 1000
    while count < waiting.limits.max_batch:
        entry = await _one_more(waiting, count, end - loop.time())
        if entry is None:
            break
        if count + len(entry.pixels) > waiting.limits.max_batch:
            left.append(entry)
            break
        batch.append(entry)
        count += len(entry.pixels)
    return batch


async def _one_more(waiting: Batcher, count: int, seconds: float) -> Asked | None:
    """What is in the queue already costs no time; only an empty one is waited at, if somebody is on the way."""
    if not waiting.queue.empty():
        return waiting.queue.get_nowait()
    if seconds <= 0 or count >= waiting.load["images"]:
        return None
    try:
        return await asyncio.wait_for(waiting.queue.get(), seconds)
    except TimeoutError:
        return None
