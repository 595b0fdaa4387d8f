"""What all routes share: the model, its queue, the decoders, and how a body becomes pixels and pixels an answer."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from starlette.requests import ClientDisconnect, Request

from taskgraft.data.transforms import Preprocessing
from taskgraft.serving import batching, decoding, metrics, model
from taskgraft.serving.batching import Batcher
from taskgraft.serving.decoding import Decoders
from taskgraft.serving.limits import Limits, Refusal
from taskgraft.serving.metrics import Gauges
from taskgraft.serving.model import Reading, Served

BODIES = 64  # of the largest size that may be in memory together; slow clients cost what they have sent
ENCODINGS = {"gzip": 31, "deflate": 15}  # zlib's window sizes


@dataclass(frozen=True)
class Service:
    """A server's parts. `state`: "draining" 0 or 1, "requests" under way, "bytes" of their bodies."""

    served: Served
    limits: Limits
    waiting: Batcher
    decoders: Decoders
    gauges: Gauges
    state: dict[str, int]


def assemble(served: Served, wanted: Preprocessing, limits: Limits) -> Service:
    """Start the decoders and put the parts together; the model answers within `running`."""
    pool = decoding.start(wanted, limits)
    state = {"draining": 0, "requests": 0, "bytes": 0}
    found = metrics.gauges(lambda: waiting.load["images"], lambda: pool.replaced[0], lambda: not state["draining"])
    waiting = batching.batcher(served, limits, found.batches.observe)
    return Service(served, limits, waiting, pool, found, state)


@asynccontextmanager
async def running(service: Service) -> AsyncIterator[None]:
    """While this lasts, the queue is worked off."""
    worker = asyncio.create_task(batching.work(service.waiting))
    try:
        yield
    finally:
        worker.cancel()
        decoding.stop(service.decoders)
        service.waiting.thread.shutdown(wait=False, cancel_futures=True)


@contextmanager
def under_way(service: Service) -> Iterator[None]:
    """A request that will be answered, come what may; raises Refusal 503 once the server stops, 429 as `check`."""
    if service.state["draining"]:
        raise Refusal(503, "the server is stopping; ask another one", retry=5)
    batching.check(service.waiting, 1)  # known before the body is read
    service.state["requests"] += 1
    try:
        yield
    finally:
        service.state["requests"] -= 1


@asynccontextmanager
async def body_of(service: Service, request: Request) -> AsyncIterator[bytes]:
    """The body, unpacked, for as long as it is needed.

    Raises Refusal 413 as soon as it is too large, 408 for one that does not come, 415, and 429 where the bodies of all
    requests together take too much memory. Slow clients cost only what they have sent.
    """
    most = service.limits.max_body * 2**20
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding != "identity" and encoding not in ENCODINGS:
        raise Refusal(415, f"Content-Encoding must be {', '.join(ENCODINGS)} or left out")
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > most:
        raise Refusal(413, f"the body has more than {service.limits.max_body} MiB")
    held: list[int] = []
    try:
        body = await _whole(service, request, most, held)
        if encoding != "identity":
            body = await asyncio.to_thread(_unpacked, body, ENCODINGS[encoding], most)
            _hold(service, len(body), held)
        yield body
    finally:
        service.state["bytes"] -= sum(held)


async def pixels_of(service: Service, pictures: list[bytes]) -> NDArray[np.uint8]:
    """Encoded images to pixels [n, S, S, 3]; raises Refusal 422 that says which one cannot be used, and why."""
    found = await asyncio.gather(
        *(decoding.decoded(service.decoders, picture) for picture in pictures), return_exceptions=True
    )
    for number, pixels in enumerate(found):
        if isinstance(pixels, Refusal):
            place = f"image {number + 1} of {len(pictures)}: " if len(pictures) > 1 else ""
            raise Refusal(pixels.status, place + pixels.message, pixels.retry)
        if isinstance(pixels, BaseException):
            raise pixels
    return np.stack([pixels for pixels in found if not isinstance(pixels, BaseException)])


async def read(service: Service, pixels: NDArray[np.uint8]) -> dict[str, Reading]:
    """What the model says of pixels [n, S, S, 3], task by task."""
    return model.read(service.served, await batching.ask(service.waiting, pixels))


async def _whole(service: Service, request: Request, most: int, held: list[int]) -> bytes:
    """The body as it came."""
    try:
        body = await asyncio.wait_for(_received(service, request, most, held), service.limits.request_seconds)
    except TimeoutError:
        raise Refusal(408, f"the body did not come within {service.limits.request_seconds:g} s") from None
    except ClientDisconnect:
        raise Refusal(400, "the connection was closed before the body was whole") from None
    if body is None:
        raise Refusal(413, f"the body has more than {service.limits.max_body} MiB")
    return body


async def _received(service: Service, request: Request, most: int, held: list[int]) -> bytes | None:
    parts, total = [], 0
    async for chunk in request.stream():
        total += len(chunk)
        if total > most:
            return None
        _hold(service, len(chunk), held)
        parts.append(chunk)
    return b"".join(parts)


def _hold(service: Service, count: int, held: list[int]) -> None:
    """Note bytes that stay in memory until their request is answered."""
    if service.state["bytes"] + count > BODIES * service.limits.max_body * 2**20:
        raise Refusal(429, "too many requests are in memory; try again", retry=1)
    service.state["bytes"] += count
    held.append(count)


def _unpacked(body: bytes, window: int, most: int) -> bytes:
    """A compressed body in full; never more than `most` bytes of it."""
    unpacker = zlib.decompressobj(window)
    try:
        whole = unpacker.decompress(body, most + 1)
    except zlib.error:
        raise Refusal(400, "the body is not compressed as its Content-Encoding says") from None
    if len(whole) > most:
        raise Refusal(413, f"the body has more than {most // 2**20} MiB when unpacked")
    if not unpacker.eof or unpacker.unused_data:
        raise Refusal(400, "the compressed body is not whole")
    return whole
