"""Limits and access: what a server rejects, how fast, and that it stays ready."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from starlette.exceptions import HTTPException

from servers import LIMITS, Running, assert_error, running
from taskgraft.errors import InputError, SetupError
from taskgraft.serving.batching import Batcher
from taskgraft.serving.limits import Limits, validate_limits
from taskgraft.serving.model import Logits, ServedModel
from taskgraft.serving.server import check_access, open_socket

TOKEN = "correct-horse"


def test_endless_body_is_cut_off(server: Running) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(10_000):
            yield bytes(2**16)

    with contextlib.suppress(httpx.WriteError):  # the connection may be closed while the body is still being sent
        assert_error(server.client.post("/predict", content=chunks()), 413)
    assert server.client.get("/v2/health/ready").status_code == 200


def test_incomplete_body_times_out(branched: Path) -> None:
    with running(branched, replace(LIMITS, request_seconds=0.5)) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nabc")
            connection.settimeout(10)
            assert b" 408 " in connection.recv(4096)
        assert server.client.get("/v2/health/ready").status_code == 200


@pytest.mark.slow
def test_full_queue_rejects_at_once_and_loses_no_request(branched: Path, image: bytes) -> None:
    with running(branched, replace(LIMITS, max_batch=2, max_queue=4)) as server:
        original = server.service.batcher.run

        def slow(pixels: NDArray[np.uint8]) -> Logits:
            time.sleep(0.2)
            return original(pixels)

        def post(_: int) -> httpx.Response:
            return httpx.post(f"{server.url}/predict", content=image, timeout=30)

        server.service.batcher.run = slow
        with ThreadPoolExecutor(24) as pool:
            responses = list(pool.map(post, range(24)))
        assert {response.status_code for response in responses} == {200, 429}
        assert sum(response.status_code == 200 for response in responses) >= 4
        assert {response.headers.get("Retry-After") for response in responses} == {None, "1"}
        assert server.service.batcher.pending == server.service.active_requests == 0
        metrics = server.client.get("/metrics").text
        assert 'taskgraft_rejected_total{reason="429"}' in metrics
        assert 'taskgraft_batch_images_bucket{le="1.0"}' in metrics
        assert post(0).status_code == 200


def test_images_of_a_request_share_a_batch(server: Running) -> None:
    def count_batches() -> float:
        lines = server.client.get("/metrics").text.splitlines()
        return float(next(line for line in lines if line.startswith("taskgraft_batch_images_count")).split()[1])

    before = count_batches()
    tensor = {"name": "image", "shape": [4, 32, 32, 3], "datatype": "UINT8", "data": [0] * (4 * 32 * 32 * 3)}
    assert server.client.post("/v2/models/both/infer", json={"inputs": [tensor]}).status_code == 200
    assert count_batches() == before + 1


def test_expected_wait_is_limited() -> None:
    limits = Limits(max_batch=4, max_queue=100, wait_seconds=1)
    model = ServedModel("m", lambda pixels: {}, 2, 3, "per-task", {}, {}, {}, {}, cast(Any, None))
    batcher = Batcher(model, limits, lambda size: None)
    batcher.pending, batcher.seconds_per_image = 3, 0.3
    batcher.check_capacity(4)
    batcher.pending = 4
    with pytest.raises(HTTPException, match="too many images") as error:
        batcher.check_capacity(1)
    assert error.value.status_code == 429


def test_empty_queue_accepts_whatever_the_pace_was() -> None:
    model = ServedModel("m", lambda pixels: {}, 2, 3, "per-task", {}, {}, {}, {}, cast(Any, None))
    batcher = Batcher(model, Limits(max_batch=4, wait_seconds=1), lambda size: None)
    batcher.seconds_per_image = 1000.0
    with batcher.admit(4):
        pass
    assert batcher.seconds_per_image < 900  # measured again


@pytest.mark.parametrize(
    ("number", "reason"), [(signal.SIGKILL, "decoding this image failed"), (signal.SIGSTOP, "took more than 1 s")]
)
def test_dead_worker_is_replaced(branched: Path, image: bytes, number: signal.Signals, reason: str) -> None:
    with running(branched, replace(LIMITS, decode_seconds=1)) as server:
        decoders = server.service.decoders
        (worker,) = decoders.idle._queue  # pyright: ignore[reportAttributeAccessIssue]
        os.kill(worker.process.pid, number)
        assert_error(server.client.post("/predict", content=image), 422, reason)
        assert server.client.post("/predict", content=image).status_code == 200
        assert decoders.replaced == 1
        assert "taskgraft_replaced_workers 1.0" in server.client.get("/metrics").text


def test_internal_error_reveals_nothing(branched: Path, image: bytes) -> None:
    def broken(pixels: NDArray[np.uint8]) -> Logits:
        raise RuntimeError("/secret/path")

    with running(branched) as server:
        server.service.batcher.run = broken
        response = server.client.post("/predict", content=image)
        assert_error(response, 500, "internal error")
        assert "secret" not in response.text
        assert server.client.get("/v2/health/ready").status_code == 200


def test_slow_clients_do_not_block_others(server: Running, image: bytes) -> None:
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\nx"
    with contextlib.ExitStack() as connections:
        for _ in range(100):
            connections.enter_context(socket.create_connection(("127.0.0.1", server.port))).sendall(head)
        while server.service.body_bytes < 100:
            time.sleep(0.01)
        assert server.client.post("/predict", content=image).status_code == 200
        assert server.service.body_bytes == 100


def test_token_is_required(branched: Path, image: bytes) -> None:
    with running(branched, token=TOKEN) as server:
        for path in ("/v2", "/v2/models/both", "/about", "/metrics", "/openapi.json", "/nowhere"):
            response = server.client.get(path)
            assert_error(response, 401, "Bearer")
            assert response.headers["WWW-Authenticate"] == "Bearer"
        assert_error(server.client.post("/predict", content=b"x"), 401)
        for wrong in ("", "Bearer", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer é"):
            headers = {b"Authorization": wrong.encode("latin-1")}
            assert_error(server.client.get("/about", headers=headers), 401)
        for path in ("/", "/page/page.js", "/page/page.css", "/v2/health/live", "/v2/health/ready"):
            assert server.client.get(path).status_code == 200
        valid = {"Authorization": f"Bearer {TOKEN}"}
        assert server.client.post("/predict", content=image, headers=valid).status_code == 200
        document = server.client.get("/openapi.json", headers=valid).json()
        assert document["paths"]["/predict"]["post"]["security"] == [{"token": []}]
        assert "security" not in document["paths"]["/v2/health/live"]["get"]


def test_foreign_hosts_and_origins_are_rejected(server: Running) -> None:
    assert_error(server.client.get("/v2", headers={"Host": "evil.example"}), 403)
    assert_error(server.client.get("/v2", headers={"Origin": "http://evil.example"}), 403)
    assert_error(server.client.get("/v2", headers={"Origin": "null"}), 403)
    assert server.client.get("/v2", headers={"Origin": server.url}).status_code == 200
    for host in ("localhost:1", "127.0.0.1", "[::1]:80"):
        assert server.client.get("/v2", headers={"Host": host}).status_code == 200


def test_security_headers(server: Running) -> None:
    headers = server.client.get("/").headers
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "access-control-allow-origin" not in headers


def test_public_host_needs_a_token() -> None:
    for host in ("127.0.0.1", "localhost", "127.8.8.8"):
        assert check_access(host, None, insecure=False)
    assert not check_access("0.0.0.0", TOKEN, insecure=False)
    assert not check_access("0.0.0.0", None, insecure=True)
    for host in ("0.0.0.0", "192.168.1.2", "::", "example.org"):
        with pytest.raises(InputError, match="set --token"):
            check_access(host, None, insecure=False)


@pytest.mark.parametrize("token", ["short", "with a space", "ünïcödé-token", "new\nline-token"])
def test_weak_token_is_rejected(token: str) -> None:
    with pytest.raises(InputError, match="at least 8 printable"):
        check_access("127.0.0.1", token, insecure=False)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(max_batch=0), "--max-batch 0: must be at least 1"),
        (Limits(max_delay=float("nan")), "--max-delay nan"),
        (Limits(max_queue=8, max_batch=9), "--max-queue 8 is smaller than --max-batch 9"),
        (Limits(max_pixels=0), "--max-pixels 0: must be above 0"),
        (Limits(workers=0), "--workers 0"),
    ],
)
def test_illegal_limits(limits: Limits, message: str) -> None:
    with pytest.raises(InputError) as error:
        validate_limits(limits)
    assert message in str(error.value)


def test_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SetupError, match="cannot listen"):
        open_socket("127.0.0.1", taken.getsockname()[1])


def test_small_responses_are_sent_at_once() -> None:
    with open_socket("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
