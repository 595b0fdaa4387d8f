"""Faults 22 to 24: the server when its model file goes, with slow clients, and on SIGTERM."""

from __future__ import annotations

import shutil
import signal
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from faults.scenario import Fault, Workspace, wait_until
from forks import start_cli
from servers import LIMITS, Running, running
from taskgraft.serving.model import Logits

IDLE_CONNECTIONS = 300


def read_images(workspace: Workspace, count: int) -> list[bytes]:
    return [file.read_bytes() for file in sorted((workspace.images / "val").rglob("*.png"))[:count]]


def post_at_once(server: Running, bodies: list[bytes]) -> list[httpx.Response]:
    with ThreadPoolExecutor(len(bodies)) as pool:
        return list(pool.map(lambda body: httpx.post(f"{server.url}/predict", content=body, timeout=30), bodies))


def labels(response: httpx.Response) -> dict[str, str | None]:
    (image,) = response.json()["images"]
    return {task: result["label"] for task, result in image["tasks"].items()}


def model_file_damaged(workspace: Workspace) -> str:
    """The model's file is cut, overwritten and removed under a server; and one image of a batch breaks the model."""
    bundle = workspace.tmp_path / "bundle"
    shutil.copytree(workspace.child, bundle)
    images = read_images(workspace, 3)
    with running(bundle) as server:
        before = [labels(response) for response in post_at_once(server, images)]
        file = bundle / "model.safetensors"
        for harm in (
            lambda: file.write_bytes(b"x"),
            lambda: shutil.copy(workspace.child / "config.json", file),
            file.unlink,
        ):
            harm()
            assert [labels(response) for response in post_at_once(server, images)] == before
        original = server.service.batcher.run

        def fails_on_sevens(pixels: NDArray[np.uint8]) -> Logits:
            time.sleep(0.2)  # so that the requests meanwhile form a batch
            if (pixels == 7).all(axis=(1, 2, 3)).any():
                raise MemoryError("no room for this one")
            return original(pixels)

        server.service.batcher.run = fails_on_sevens
        Image.new("RGB", (32, 32), (7, 7, 7)).save(workspace.tmp_path / "seven.png")
        seven = (workspace.tmp_path / "seven.png").read_bytes()
        responses = post_at_once(server, [images[0], images[1], seven, images[2], b"no image"])
        assert [response.status_code for response in responses] == [200, 200, 500, 200, 422]
        assert [labels(responses[row]) for row in (0, 1, 3)] == before
        assert server.client.get("/v2/health/ready").status_code == 200
    return "predictions stay; of five together three good ones are answered, 500 and 422 for the others"


def slow_clients(workspace: Workspace) -> str:
    """Idle connections, a byte at a time, and clients that go away in the middle of a response."""
    images = read_images(workspace, 2)
    head = "POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n"
    with ExitStack() as connections, running(workspace.child, replace(LIMITS, request_seconds=2)) as server:
        for _ in range(IDLE_CONNECTIONS):
            connections.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        slow = connections.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        slow.sendall(head.format(100_000).encode())
        start = time.monotonic()
        assert {response.status_code for response in post_at_once(server, images)} == {200}
        assert time.monotonic() - start < 2
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", server.port)) as connection:
                connection.sendall(head.format(len(images[0])).encode() + images[0])
        slow.settimeout(10)
        received = b""
        while b" 408 " not in received:
            slow.sendall(b"x")
            time.sleep(0.1)
            slow.setblocking(False)
            try:
                received += slow.recv(4096)
            except BlockingIOError:
                assert time.monotonic() - start < 10
            slow.setblocking(True)
        assert {response.status_code for response in post_at_once(server, images)} == {200}
        assert server.service.batcher.pending == server.service.active_requests == 0
    return f"{IDLE_CONNECTIONS} idle connections, 20 that went away, one byte at a time (408): others are answered"


def stops_under_load(workspace: Workspace) -> str:
    """Eight clients send requests without a pause; the server is stopped. Each request sent before is answered."""
    body, counts, stopping = read_images(workspace, 1)[0], Counter(), threading.Event()
    head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"

    def send_requests(port: int) -> None:
        late = False
        while not late:
            response = b""
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
                    connection.sendall(head.encode() + body)
                    late = stopping.is_set()
                    response = b"".join(iter(lambda: connection.recv(65536), b""))
            except OSError:  # the port is closed, or was closed meanwhile
                response = b""
            counts[int(response.split(b" ", 2)[1]) if response else "dropped"] += not late

    server = start_cli("serve", workspace.child, "--port", 0, "--workers", 1)
    with ThreadPoolExecutor(8) as pool:
        try:
            wait_until(lambda: "ready: " in server.stderr)
            port = int(server.stderr.partition("ready: ")[2].split()[0].rpartition(":")[2])
            clients = [pool.submit(send_requests, port) for _ in range(8)]
            wait_until(lambda: counts[200] >= 50)
        finally:
            stopping.set()
            server.send_signal(signal.SIGTERM)
        done = server.wait()
        for client in clients:
            client.result()
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert not counts["dropped"]
    assert set(counts) <= {200, 429, 503, "dropped"}, counts
    return "health check says not ready, all requests sent before are answered, exit 0"


LIMIT_TESTS, DRAIN_TESTS = "tests/serving/test_limits.py", "tests/serving/test_drain.py"
FAULTS = [
    Fault(22, "a decoding process is killed, the model's file changes, one image breaks the model",
          "one bad request does not fail its batch mates; the model in memory keeps working", model_file_damaged,
          (f"{LIMIT_TESTS}::test_dead_worker_is_replaced", f"{LIMIT_TESTS}::test_internal_error_reveals_nothing")),
    Fault(23, "slow clients, idle connections, clients that go away, ten times too many", "the others are answered",
          slow_clients, (f"{LIMIT_TESTS}::test_incomplete_body_times_out",
                         f"{LIMIT_TESTS}::test_full_queue_rejects_at_once_and_loses_no_request")),
    Fault(24, "SIGTERM under load", "the health check says not ready first, everything accepted is answered",
          stops_under_load, (f"{DRAIN_TESTS}::test_sigterm_loses_no_request",)),
]  # fmt: skip
