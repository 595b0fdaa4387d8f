"""Requests that are wrong in every field, each sent to the real program, and what its log says of them."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from malformed_requests import CANARY, CANARY_BYTES, CONNECTION_CLOSED, make_requests, post_request, request_head
from servers import Running, assert_error
from taskgraft.serving.model import Logits

BODY_SECONDS = 1.0  # timeout for bodies in these tests
REQUESTS = make_requests("both", 32)
READY = request_head("GET", "/v2/health/ready")


class Program(NamedTuple):
    """A running `taskgraft serve`."""

    port: int
    log: Path


@pytest.fixture(scope="module")
def program(branched: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    log = tmp_path_factory.mktemp("log") / "log.txt"
    command = [sys.executable, "-m", "taskgraft.cli", "serve", str(branched), "--port", "0", "--name", "both"]
    command += ["--workers", "1", "--max-body", "2", "--max-pixels", "1", "--request-seconds", str(BODY_SECONDS)]
    with log.open("wb") as file, subprocess.Popen(command, stderr=file, cwd=log.parent) as process:
        while b"ready: " not in log.read_bytes():
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        url = log.read_text().split("ready: ")[1].split()[0]
        yield Program(int(url.rsplit(":", 1)[1]), log)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def exchange(port: int, data: bytes) -> bytes:
    """The first response to some bytes; empty if the connection is only closed."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.settimeout(10)
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):  # the response may come before all is sent
            connection.sendall(data)
        return receive(connection)


def receive(connection: socket.socket) -> bytes:
    response = b""
    with contextlib.suppress(ConnectionResetError):
        while not is_complete(response) and (part := connection.recv(65_536)):
            response += part
    return response


def is_complete(response: bytes) -> bool:
    headers, separator, body = response.partition(b"\r\n\r\n")
    length = headers.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]
    return bool(separator and length) and len(body) >= int(length)


def status(response: bytes) -> int:
    return int(response.split(b" ", 2)[1]) if response.startswith(b"HTTP/1.1 ") else CONNECTION_CLOSED


@pytest.mark.parametrize("name", REQUESTS)
def test_malformed_request_is_rejected(program: Program, name: str) -> None:
    request = REQUESTS[name]
    start = time.monotonic()
    response = exchange(program.port, request.sent)
    assert status(response) in request.statuses, response[:2000]
    assert time.monotonic() - start < (BODY_SECONDS if request.slow else 0) + 5
    assert b"Traceback" not in response
    assert str(Path(__file__).parents[2]).encode() not in response
    assert status(exchange(program.port, READY)) == 200


def test_log_quotes_no_client(program: Program, image: bytes) -> None:
    """The log contains no token, no name and no byte of an image, neither of good nor of broken requests."""
    headers = (f"Authorization: Bearer {CANARY}", f"Cookie: {CANARY}", f"User-Agent: {CANARY}")
    assert status(exchange(program.port, post_request(f"/predict?top=1&x={CANARY}", image, *headers))) == 200
    for request in REQUESTS.values():
        if not request.slow:
            exchange(program.port, request.sent)
    with socket.create_connection(("127.0.0.1", program.port)) as connection:  # closed in the middle of an image
        connection.sendall(post_request("/predict", image)[:-20])
    with socket.create_connection(("127.0.0.1", program.port)) as connection:  # broken while its body is awaited
        connection.sendall(request_head("POST", "/predict", "Transfer-Encoding: chunked") + b"3\r\nabc\r\n")
        time.sleep(0.3)
        connection.sendall(CANARY_BYTES + b"\r\n" + CANARY_BYTES)
        assert status(connection.recv(65_536)) == 400
    with socket.create_connection(("127.0.0.1", program.port)) as connection:  # broken after its response
        connection.sendall(request_head("POST", "/nowhere", "Transfer-Encoding: chunked") + b"3\r\nabc\r\n")
        connection.recv(65_536)
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            connection.sendall(CANARY_BYTES * 100 + b"\r\n")
            connection.recv(65_536)
    assert status(exchange(program.port, READY)) == 200
    log = program.log.read_bytes()
    assert b"ready: " in log
    for forbidden in (CANARY_BYTES, b"Traceback", b"failed"):
        assert forbidden not in log
    assert log.count(b"\n") < 20


def test_logged_error_is_short_and_escaped(
    server: Running, image: bytes, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(pixels: NDArray[np.uint8]) -> Logits:
        raise RuntimeError("out of memory\n\x1b[31m" + "x" * 1000)

    monkeypatch.setattr(server.service.batcher, "run", broken)
    assert_error(server.client.post("/predict", content=image), 500)
    deadline = time.monotonic() + 10
    while "in broken" not in caplog.text and time.monotonic() < deadline:  # the response comes first
        time.sleep(0.01)
    assert "RuntimeError 'out of memory\\n\\x1b[31mxxx" in caplog.text
    assert "in broken" in caplog.text
    assert "\x1b" not in caplog.text
    assert "x" * 200 not in caplog.text


def test_requests_differ() -> None:
    assert len(REQUESTS) > 100
    assert len({request.sent for request in REQUESTS.values()}) == len(REQUESTS)
    assert all(500 not in request.statuses for request in REQUESTS.values())
