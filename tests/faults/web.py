"""Faults 22 to 24: the server under attack from its own machine, from slow clients, and told to stop."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from multiprocessing import forkserver

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image

import dying
from faults.trying import Fault, Place, begun, waited_for
from servers import LIMITS, Running, running

IDLE = 300  # connections that say nothing


def bodies(place: Place, count: int) -> list[bytes]:
    return [file.read_bytes() for file in sorted((place.new / "val").rglob("*.png"))[:count]]


def answers(found: Running, sent: list[bytes]) -> list[httpx.Response]:
    """What comes back when all are sent at once."""
    with ThreadPoolExecutor(len(sent)) as many:
        return list(many.map(lambda body: httpx.post(f"{found.url}/predict", content=body, timeout=30), sent))


def told(answer: httpx.Response) -> dict[str, object]:
    (picture,) = answer.json()["images"]
    return {task: found["label"] for task, found in picture["tasks"].items()}


def model_goes(place: Place) -> str:
    """The model's file is cut, overwritten and removed under a server; and one image of a batch breaks the model."""
    bundle = place.root / "bundle"
    shutil.copytree(place.plain, bundle)
    sent = bodies(place, 3)
    with running(bundle) as found:
        before = [told(answer) for answer in answers(found, sent)]
        file = bundle / "model.safetensors"
        for harm in (
            lambda: file.write_bytes(b"x"),
            lambda: shutil.copy(place.plain / "config.json", file),
            file.unlink,
        ):
            harm()
            assert [told(answer) for answer in answers(found, sent)] == before
        quick = found.service.waiting.run

        def picky(pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
            time.sleep(0.2)  # so that those who come meanwhile are asked together
            if (pixels == 7).all(axis=(1, 2, 3)).any():
                raise MemoryError("no room for this one")
            return quick(pixels)

        object.__setattr__(found.service.waiting, "config", picky)
        Image.new("RGB", (32, 32), (7, 7, 7)).save(place.root / "seven.png")
        seven = (place.root / "seven.png").read_bytes()
        mixed = answers(found, [sent[0], sent[1], seven, sent[2], b"no image"])
        assert [answer.status_code for answer in mixed] == [200, 200, 500, 200, 422]
        assert [told(mixed[place]) for place in (0, 1, 3)] == before
        assert found.client.get("/v2/health/ready").status_code == 200
    return "answers stay; of five together three good ones are answered, 500 and 422 for the others"


def slow_clients(place: Place) -> str:
    """Idle connections, a byte at a time, and clients that go away in the middle of an answer."""
    sent = bodies(place, 2)
    with ExitStack() as lines, running(place.plain, replace(LIMITS, request_seconds=2)) as found:
        port = int(found.url.rsplit(":", 1)[1])
        for _ in range(IDLE):
            lines.enter_context(socket.create_connection(("127.0.0.1", port)))
        slow = lines.enter_context(socket.create_connection(("127.0.0.1", port)))
        slow.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n")
        start = time.monotonic()
        assert {answer.status_code for answer in answers(found, sent)} == {200}
        assert time.monotonic() - start < 2
        head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(sent[0])}\r\n\r\n".encode()
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", port)) as line:
                line.sendall(head + sent[0])
        slow.settimeout(10)
        said = b""
        while b" 408 " not in said:
            slow.sendall(b"x")
            time.sleep(0.1)
            slow.setblocking(False)
            try:
                said += slow.recv(4096)
            except BlockingIOError:
                assert time.monotonic() - start < 10
            slow.setblocking(True)
        assert {answer.status_code for answer in answers(found, sent)} == {200}
        assert found.service.waiting.load["images"] == found.service.state["requests"] == 0
    return f"{IDLE} idle connections, 20 that went away and one byte at a time (408): others are answered at once"


def own_helpers() -> None:
    """A fork must start a fork server of its own, and not ask its parent's."""
    known = vars(forkserver._forkserver)  # pyright: ignore[reportAttributeAccessIssue]
    known.update(_forkserver_pid=None, _forkserver_address=None, _forkserver_alive_fd=None)


def told_to_stop(place: Place) -> str:
    """Eight clients ask without a pause; the server is told to stop. Whoever asked before that gets an answer."""
    body, found, stopping = bodies(place, 1)[0], Counter(), threading.Event()
    head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"

    def ask(port: int) -> None:
        late, said = False, b""
        while not late:
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=30) as line:
                    line.sendall(head.encode() + body)
                    late = stopping.is_set()
                    said = b"".join(iter(lambda line=line: line.recv(65536), b""))
            except OSError:  # nobody listens any more, or not for long enough
                said = b""
            found["dropped" if not said else int(said.split(b" ", 2)[1])] += not late

    streams = [place.root / "out", place.root / "err"]
    server = begun(("serve", place.plain, "--port", 0, "--workers", 1), streams, own_helpers)
    with ThreadPoolExecutor(8) as many:
        try:
            waited_for(lambda: "ready: " in streams[1].read_text())
            port = int(streams[1].read_text().partition("ready: ")[2].split()[0].rpartition(":")[2])
            asking = [many.submit(ask, port) for _ in range(8)]
            waited_for(lambda: found[200] >= 50)
        finally:
            stopping.set()
            os.kill(server.pid, signal.SIGTERM)
        code, _ = dying.end(server)
        for one in asking:
            one.result()
    assert code == 0
    assert "Traceback" not in streams[1].read_text()
    assert not found["dropped"]
    assert set(found) <= {200, 429, 503, "dropped"}, found
    return "ready says no, whoever had asked is answered, exit 0"


LIMITED, DRAIN = "tests/serving/test_limits.py", "tests/serving/test_drain.py"
FAULTS = [
    Fault(22, "a decoding process is killed, the model's file changes, one image breaks the model",
          "one bad request does not fail its batch mates; the model in memory answers on", model_goes,
          (f"{LIMITED}::test_a_worker_that_dies_is_replaced", f"{LIMITED}::test_an_error_inside_tells_nothing")),
    Fault(23, "slow clients, idle connections, clients that go away, ten times too many", "the others are answered",
          slow_clients, (f"{LIMITED}::test_a_lying_length_waits_no_longer_than_allowed",
                         f"{LIMITED}::test_a_full_queue_says_so_at_once_and_loses_nobody")),
    Fault(24, "SIGTERM under load", "ready says no first, everything that was let in is answered",
          told_to_stop, (f"{DRAIN}::test_sigterm_loses_no_request",)),
]  # fmt: skip
