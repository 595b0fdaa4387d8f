"""What all routes share: the model, its queue, the decoding processes, the metrics, and the bodies of requests."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from taskgraft.data.transforms import Preprocessing
from taskgraft.serving.batching import Batcher
from taskgraft.serving.decoding import DecoderPool
from taskgraft.serving.limits import Limits
from taskgraft.serving.model import ServedModel, TaskPrediction

MAX_BODIES = 64  # bodies of the maximum size in memory at once; slow clients count only what they have sent
ZLIB_WINDOWS = {"gzip": 31, "deflate": 15}  # Content-Encoding -> zlib's wbits
LATENCY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The Prometheus metrics of one server, in their own registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        route = ("route",)
        self.requests = Counter("taskgraft_requests", "Requests", ("route", "status"), registry=self.registry)
        self.latency = Histogram(
            "taskgraft_request_seconds", "Time to respond", route, buckets=LATENCY_BUCKETS, registry=self.registry
        )
        self.batches = Histogram(
            "taskgraft_batch_images", "Images per batch", buckets=BATCH_BUCKETS, registry=self.registry
        )
        self.rejected = Counter("taskgraft_rejected", "Requests over a limit", ("reason",), registry=self.registry)


class Service:
    """A served model with everything that requests share.

    Attributes:
        model: the model.
        limits: the limits of the server.
        decoders: the processes that decode images.
        batcher: the queue in front of the model.
        metrics: what /metrics exposes.
        draining: the server is stopping and takes no more requests.
        active_requests: inference requests in progress.
        body_bytes: size of their bodies in memory.

    Raises:
        SetupError: a decoding process did not start.
    """

    def __init__(self, model: ServedModel, preprocessing: Preprocessing, limits: Limits) -> None:
        self.model = model
        self.limits = limits
        self.metrics = Metrics()
        self.decoders = DecoderPool(preprocessing, limits)
        self.batcher = Batcher(model, limits, self.metrics.batches.observe)
        self.draining = False
        self.active_requests = 0
        self.body_bytes = 0
        for name, help_text, value in (
            ("taskgraft_waiting_images", "Images admitted and not yet answered", lambda: self.batcher.pending),
            ("taskgraft_replaced_workers", "Decoding processes that hung or died", lambda: self.decoders.replaced),
            ("taskgraft_ready", "1 while requests are accepted", lambda: not self.draining),
        ):
            Gauge(name, help_text, registry=self.metrics.registry).set_function(value)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Process the queue as long as the context lasts, then stop the processes and the model's thread."""
        worker = asyncio.create_task(self.batcher.run_forever())
        try:
            yield
        finally:
            worker.cancel()
            self.decoders.close()
            self.model.thread.shutdown(wait=False, cancel_futures=True)

    def check_ready(self) -> None:
        """Raise HTTPException 503 while the server is stopping."""
        if self.draining:
            raise HTTPException(503, "the server is shutting down")

    @contextmanager
    def track_request(self) -> Iterator[None]:
        """Count an inference request, which is still answered if the server stops; HTTPException 503 or 429."""
        self.check_ready()
        self.batcher.check_capacity(1)  # before the body is read
        self.active_requests += 1
        try:
            yield
        finally:
            self.active_requests -= 1

    @asynccontextmanager
    async def read_body(self, request: Request) -> AsyncIterator[bytes]:
        """The decompressed body of a request, counted in `body_bytes` while the context lasts.

        Raises:
            HTTPException: status 413 as soon as it is too large, 408 if it does not arrive in time, 415 for an unknown
                Content-Encoding, 429 where all bodies together take too much memory.
        """
        limit = self.limits.max_body * 2**20
        too_large = HTTPException(413, f"the body is larger than {self.limits.max_body} MiB")
        encoding = request.headers.get("content-encoding", "identity").lower()
        if encoding != "identity" and encoding not in ZLIB_WINDOWS:
            raise HTTPException(415, f"unsupported Content-Encoding; use {', '.join(ZLIB_WINDOWS)} or none")
        length = request.headers.get("content-length", "0")
        if length.isdecimal() and int(length) > limit:
            raise too_large
        chunks: list[bytes] = []
        received = reserved = 0
        try:
            try:
                async with asyncio.timeout(self.limits.request_seconds):
                    async for chunk in request.stream():
                        received += len(chunk)
                        if received > limit:
                            raise too_large
                        reserved += self._reserve(len(chunk))
                        chunks.append(chunk)
            except TimeoutError:
                raise HTTPException(408, f"no complete body within {self.limits.request_seconds:g} s") from None
            except ClientDisconnect:
                raise HTTPException(400, "the connection was closed before the end of the body") from None
            body = b"".join(chunks)
            if encoding != "identity":
                body = await asyncio.to_thread(_decompress, body, ZLIB_WINDOWS[encoding], limit)
                reserved += self._reserve(len(body))
            yield body
        finally:
            self.body_bytes -= reserved

    def _reserve(self, count: int) -> int:
        if self.body_bytes + count > MAX_BODIES * self.limits.max_body * 2**20:
            raise HTTPException(429, "too many request bodies are in memory; retry later")
        self.body_bytes += count
        return count

    async def decode(self, files: Sequence[bytes]) -> NDArray[np.uint8]:
        """Decode image files to pixels [n, S, S, C]; HTTPException for the first file that cannot be used."""
        results = await asyncio.gather(*map(self.decoders.decode, files), return_exceptions=True)
        images = []
        for number, result in enumerate(results, 1):
            if isinstance(result, HTTPException) and len(files) > 1:
                raise HTTPException(result.status_code, f"image {number} of {len(files)}: {result.detail}")
            if isinstance(result, BaseException):
                raise result
            images.append(result)
        return np.stack(images)

    async def predict(self, pixels: NDArray[np.uint8]) -> dict[str, TaskPrediction]:
        """Predict every task for pixels [n, S, S, C]; HTTPException 503 on timeout."""
        return self.model.interpret(await self.batcher.predict(pixels))


def _decompress(body: bytes, window: int, limit: int) -> bytes:
    """Decompress a body, but never more than `limit` bytes of it."""
    decompressor = zlib.decompressobj(window)
    try:
        data = decompressor.decompress(body, limit + 1)
    except zlib.error:
        raise HTTPException(400, "the body is not compressed as its Content-Encoding says") from None
    if len(data) > limit:
        raise HTTPException(413, f"the decompressed body is larger than {limit // 2**20} MiB")
    if not decompressor.eof or decompressor.unused_data:
        raise HTTPException(400, "the compressed body is incomplete or followed by other data")
    return data
