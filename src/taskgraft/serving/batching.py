"""Dynamic batching: concurrent requests share one forward pass, after a short wait for more of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from starlette.exceptions import HTTPException

from taskgraft.serving.limits import Limits
from taskgraft.serving.model import Logits, ServedModel

AVERAGED_IMAGES = 32  # images over which the time per image is averaged: smooths batches, yet follows the load


@dataclass(frozen=True)
class _Request:
    pixels: NDArray[np.uint8]  # [n, S, S, C]
    logits: asyncio.Future[Logits]


class Batcher:
    """The queue in front of the model, which runs in one thread; `observe_batch` gets the size of each batch.

    Attributes:
        run: computes logits from pixels.
        pending: images that were admitted and are not answered yet.
        seconds_per_image: moving average of the time between two answered images; 0 before the first.
    """

    def __init__(self, model: ServedModel, limits: Limits, observe_batch: Callable[[int], None]) -> None:
        self.run = model.run
        self.pending = 0
        self.seconds_per_image = 0.0
        self._limits = limits
        self._thread = model.thread
        self._observe_batch = observe_batch
        self._queue: asyncio.Queue[_Request] = asyncio.Queue()
        self._next: _Request | None = None  # did not fit into the previous batch
        self._last_answer = 0.0

    def check_capacity(self, count: int) -> None:
        """Raise HTTPException 429 if images would exceed the queue or its expected waiting time (Little's law)."""
        expected_wait = self.pending * self.seconds_per_image
        if self.pending + count > self._limits.max_queue or expected_wait > self._limits.wait_seconds:
            raise HTTPException(429, "too many images are waiting; retry later")

    @contextmanager
    def admit(self, count: int) -> Iterator[None]:
        """Reserve room for the images of one request while it is processed; HTTPException 422 or 429 if denied."""
        if count > self._limits.max_batch:
            raise HTTPException(422, f"{count} images in one request; the limit is {self._limits.max_batch}")
        self.check_capacity(count)
        if not self.pending:
            self._last_answer = time.monotonic()
        self.pending += count
        try:
            yield
            self._update_pace(count)  # answered images only: a rejected one would look like a fast one
        finally:
            self.pending -= count

    def _update_pace(self, count: int) -> None:
        now = time.monotonic()
        seconds = (now - self._last_answer) / count
        weight = min(1.0, count / AVERAGED_IMAGES) if self.seconds_per_image else 1.0
        self.seconds_per_image += weight * (seconds - self.seconds_per_image)
        self._last_answer = now

    async def predict(self, pixels: NDArray[np.uint8]) -> Logits:
        """Queue pixels [n, S, S, C] and wait for the logits [n, K] of each task; HTTPException 503 on timeout."""
        request = _Request(pixels, asyncio.get_running_loop().create_future())
        self._queue.put_nowait(request)
        try:
            return await asyncio.wait_for(request.logits, self._limits.request_seconds)
        except TimeoutError:
            raise HTTPException(503, f"no prediction within {self._limits.request_seconds:g} s") from None

    async def run_forever(self) -> None:
        """Process the queue until cancelled."""
        while True:
            batch = [request for request in await self._collect_batch() if not request.logits.done()]
            if batch:
                await self._run_batch(batch)

    async def _run_batch(self, batch: list[_Request]) -> None:
        """Run the model and distribute the rows. A failed batch is retried request by request, so one request that
        the model cannot process, or that exhausts the memory, does not fail the others.
        """
        pixels = np.concatenate([request.pixels for request in batch])
        self._observe_batch(len(pixels))
        try:
            logits = await asyncio.get_running_loop().run_in_executor(self._thread, self.run, pixels)
        except Exception as error:  # belongs to whoever waits for it and must not end the loop
            if len(batch) > 1:
                for request in batch:
                    await self._run_batch([request])
            elif not batch[0].logits.done():
                batch[0].logits.set_exception(error)
            return
        start = 0
        for request in batch:
            stop = start + len(request.pixels)
            if not request.logits.done():
                request.logits.set_result({task: values[start:stop] for task, values in logits.items()})
            start = stop

    async def _collect_batch(self) -> list[_Request]:
        """The next batch: as many requests as fit."""
        batch = [self._next or await self._queue.get()]
        self._next = None
        count = len(batch[0].pixels)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._limits.max_delay / 1000
        while count < self._limits.max_batch:
            request = await self._next_request(count, deadline - loop.time())
            if request is None:
                break
            if count + len(request.pixels) > self._limits.max_batch:
                self._next = request
                break
            batch.append(request)
            count += len(request.pixels)
        return batch

    async def _next_request(self, count: int, seconds: float) -> _Request | None:
        """Take what is queued at once; wait only while an admitted image is still on its way."""
        if not self._queue.empty():
            return self._queue.get_nowait()
        if seconds <= 0 or count >= self.pending:
            return None
        try:
            return await asyncio.wait_for(self._queue.get(), seconds)
        except TimeoutError:
            return None
