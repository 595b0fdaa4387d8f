"""The whole application, without a network: no request is answered with 5xx but 503, and every refusal is JSON."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fuzz.fuzzing import Target
from fuzz.pictures import drawn
from malformed import requests
from taskgraft.data import decode
from taskgraft.data.transforms import Preprocessing
from taskgraft.serving import app, batching, metrics
from taskgraft.serving.decoding import BAD, GOOD, Decoders, Worker
from taskgraft.serving.limits import Limits
from taskgraft.serving.model import Served
from taskgraft.serving.service import Service

WANTED = Preprocessing(2, "squash", 0.875, "bilinear")
LIMITS = Limits(max_batch=4, max_delay=0, max_queue=8, max_body=1, max_pixels=0.02, request_seconds=5, workers=1)
CLASSES = ("x", "y")
WORDS = (
    b"POST /predict?top=2", b"POST /v2/models/m/infer", b"GET /metrics", b"GET /v2/models/m", b"GET /page/page.js",
    b"\r\n", b"content-type: multipart/form-data; boundary=x", b"content-encoding: gzip", b"charset=utf-7",
    b"--x\r\n", b"--x--", b'Content-Disposition: form-data; name="f"; filename="a"',
    b"inference-header-content-length: 9", b"origin: http://[", b"transfer-encoding: chunked",
    b"content-length: 99999999", b"authorization: Bearer ", b"\x1f\x8b\x08", b'"inputs"',
)  # fmt: skip


class InHand:
    """A worker that is no process: what it is sent it decodes at once."""

    def __init__(self) -> None:
        self.found = b""

    def send_bytes(self, found: bytes) -> None:
        picture = decode.decode_bytes(found, WANTED, 20_000)
        self.found = BAD + str(picture.reason).encode() if picture.pixels is None else GOOD + picture.pixels.tobytes()

    def recv_bytes(self) -> bytes:
        return self.found


def target(folder: Path) -> Target:
    loop = asyncio.new_event_loop()
    found = service()
    guarded = app.create(found)
    loop.create_task(batching.work(found.waiting))  # noqa: RUF006 - it lives as long as the loop

    def one(data: bytes) -> None:
        status, headers, body = loop.run_until_complete(asked(guarded, data))
        assert status < 500 or status == 503, (status, body)
        if status >= 400:
            assert headers[b"content-type"] == b"application/json"
            assert list(json.loads(body)) == ["error"]
        assert not found.state["bytes"]
        assert not found.waiting.load["images"]

    good = [drawn("PNG", "RGBA"), drawn("JPEG", "RGB")]
    seeds = [request.sent for request in requests("m", 2).values() if len(request.sent) < 2000]
    seeds += [b"POST /predict HTTP/1.1\r\nHost: localhost\r\n\r\n" + picture for picture in good]
    return Target(one, seeds, WORDS, longest=3000, executions=600)


def service() -> Service:
    """A server's parts with a model that knows nothing and a decoder in this process."""
    thread = ThreadPoolExecutor(1)

    def run(pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        return {"a": np.zeros((len(pixels), 2), np.float32)}

    served = Served(
        "m", run, 2, "per-task", {"a": CLASSES}, {"a": 1.0}, {"a": "logits_a"}, {"preprocessing": ""}, thread
    )
    pool = Decoders(WANTED, LIMITS, asyncio.Queue(), thread, [0])
    pool.idle.put_nowait(Worker(cast(Any, None), cast(Connection, InHand())))
    made = metrics.gauges(lambda: 0, lambda: 0, lambda: True)
    waiting = batching.batcher(served, LIMITS, made.batches.observe)
    return Service(served, LIMITS, waiting, pool, made, {"draining": 0, "requests": 0, "bytes": 0})


async def asked(made: Any, data: bytes) -> tuple[int, dict[bytes, bytes], bytes]:
    """What the application answers to a request's bytes, split by the plainest reading of HTTP."""
    head, _, body = data.partition(b"\r\n\r\n")
    start, *lines = head.split(b"\r\n")
    method, _, place = start.partition(b" ")
    path, _, query = place.partition(b" ")[0].partition(b"?")
    split = [line.partition(b":") for line in lines[:50]]
    headers = [(name.lower(), value.strip()) for name, _, value in split if name and name.lower() != b"host"]
    scope = {
        "type": "http", "http_version": "1.1", "method": method.decode("latin-1").upper()[:20] or "GET",
        "scheme": "http",
        "path": path.decode("utf-8", "replace"), "raw_path": path, "query_string": query, "root_path": "",
        "headers": [*headers, (b"host", b"localhost")],
        "server": ("localhost", 80), "client": ("localhost", 1), "state": {},
    }  # fmt: skip
    parts = [{"type": "http.request", "body": body[:1000], "more_body": True}]
    parts.append({"type": "http.request", "body": body[1000:], "more_body": False})
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return parts.pop(0) if parts else {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await made(scope, receive, send)
    content = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], dict(sent[0]["headers"]), content
