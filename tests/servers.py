"""A server in a thread of this process, on a free port of this machine."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import uvicorn

from taskgraft.bundle import open_parent
from taskgraft.serving import server as http_server
from taskgraft.serving.app import create_app
from taskgraft.serving.limits import Limits
from taskgraft.serving.model import load_model
from taskgraft.serving.service import Service

LIMITS = Limits(max_batch=8, max_queue=16, max_body=2, max_pixels=1.0, workers=1, decode_seconds=5, request_seconds=5)


class Running(NamedTuple):
    """A running server, its service, and a client."""

    url: str
    port: int
    service: Service
    client: httpx.Client


@contextmanager
def running(
    bundle: Path, limits: Limits = LIMITS, *, token: str | None = None, backend: str = "torch"
) -> Iterator[Running]:
    parent = open_parent(str(bundle))
    service = Service(load_model(parent, backend, "both"), parent.preprocessing, limits)
    with http_server.open_socket("127.0.0.1", 0) as listener:
        server = uvicorn.Server(http_server.configure_uvicorn(create_app(service, token=token)))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        port = listener.getsockname()[1]
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
                yield Running(f"http://127.0.0.1:{port}", port, service, client)
        finally:
            server.should_exit = True
            thread.join(20)


def assert_error(response: httpx.Response, status: int, part: str = "") -> None:
    assert response.status_code == status, response.text
    assert list(response.json()) == ["error"]
    assert part in response.json()["error"]
