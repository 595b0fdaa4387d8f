"""The application without a network: no request gets a 5xx but 503, and every error is JSON."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray
from starlette.types import ASGIApp, Message

from fuzz.fuzzing import Target
from fuzz.images import drawn
from malformed_requests import make_requests
from taskgraft.data import decode
from taskgraft.data.transforms import Preprocessing
from taskgraft.serving import decoding
from taskgraft.serving.app import create_app
from taskgraft.serving.decoding import OK, REJECTED
from taskgraft.serving.limits import Limits
from taskgraft.serving.model import Logits, OutputNames, ServedModel
from taskgraft.serving.service import Service

PREPROCESSING = Preprocessing(2, "squash", 0.875, "bilinear")
LIMITS = Limits(max_batch=4, max_delay=0, max_queue=8, max_body=1, max_pixels=0.02, request_seconds=5, workers=1)
CLASSES = ("x", "y")
WORDS = (
    b"POST /predict?top=2", b"POST /v2/models/m/infer", b"GET /metrics", b"GET /v2/models/m", b"GET /page/page.js",
    b"\r\n", b"content-type: multipart/form-data; boundary=x", b"content-encoding: gzip", b"charset=utf-7",
    b"--x\r\n", b"--x--", b'Content-Disposition: form-data; name="f"; filename="a"',
    b"inference-header-content-length: 9", b"origin: http://[", b"transfer-encoding: chunked",
    b"content-length: 99999999", b"authorization: Bearer ", b"\x1f\x8b\x08", b'"inputs"',
)  # fmt: skip


class InProcessWorker:
    """Decodes in this process what a worker process would."""

    def __init__(self, preprocessing: Preprocessing, max_pixels: int) -> None:
        self.preprocessing, self.max_pixels = preprocessing, max_pixels

    def decode(self, data: bytes) -> bytes:
        image = decode.decode_bytes(data, self.preprocessing, self.max_pixels)
        return REJECTED + str(image.reason).encode() if image.pixels is None else OK + image.pixels.tobytes()


def target(folder: Path) -> Target:
    loop = asyncio.new_event_loop()
    service = build_service()
    app = create_app(service)
    loop.create_task(service.batcher.run_forever())  # noqa: RUF006 - it lives as long as the loop

    def one(data: bytes) -> None:
        status, headers, body = loop.run_until_complete(send_request(app, data))
        assert status < 500 or status == 503, (status, body)
        if status >= 400:
            assert headers[b"content-type"] == b"application/json"
            assert list(json.loads(body)) == ["error"]
        assert not service.body_bytes
        assert not service.batcher.pending

    images = [drawn("PNG", "RGBA"), drawn("JPEG", "RGB")]
    seeds = [request.sent for request in make_requests("m", 2).values() if len(request.sent) < 2000]
    seeds += [b"POST /predict HTTP/1.1\r\nHost: localhost\r\n\r\n" + image for image in images]
    return Target(one, seeds, WORDS, longest=3000, executions=600)


def build_service() -> Service:
    """A service with a model that returns zeros, and a decoder in this process."""

    def run(pixels: NDArray[np.uint8]) -> Logits:
        return {"a": np.zeros((len(pixels), 2), np.float32)}

    names, about = OutputNames("logits_a", "probabilities_a", "label_a"), {"preprocessing": ""}
    model = ServedModel(
        "m", run, 2, 3, "per-task", {"a": CLASSES}, {"a": 1.0}, {"a": names}, about, ThreadPoolExecutor(1)
    )
    with patch.object(decoding, "Worker", InProcessWorker):
        return Service(model, PREPROCESSING, LIMITS)


async def send_request(app: ASGIApp, data: bytes) -> tuple[int, dict[bytes, bytes], bytes]:
    """Status, headers and body that the application returns for a request's bytes, split in the simplest way."""
    request_head, _, body = data.partition(b"\r\n\r\n")
    start, *lines = request_head.split(b"\r\n")
    method, _, target = start.partition(b" ")
    path, _, query = target.partition(b" ")[0].partition(b"?")
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
    sent: list[Message] = []

    async def receive() -> Message:
        return parts.pop(0) if parts else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    content = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], dict(sent[0]["headers"]), content
