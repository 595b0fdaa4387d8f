"""A server in this process, on a free port of this machine."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import uvicorn

from taskgraft.bundle import open_parent
from taskgraft.serving import app, model, service
from taskgraft.serving import server as http_server
from taskgraft.serving.limits import Limits
from taskgraft.serving.service import Service

LIMITS = Limits(max_batch=8, max_queue=16, max_body=2, max_pixels=1.0, workers=1, decode_seconds=5, request_seconds=5)


class Running(NamedTuple):
    """A server, its parts, and somebody who asks it."""

    url: str
    service: Service
    client: httpx.Client


@contextmanager
def running(
    bundle: Path, limits: Limits = LIMITS, *, token: str | None = None, backend: str = "torch"
) -> Iterator[Running]:
    opened = open_parent(str(bundle))
    found = service.assemble(model.load(opened, backend, "both"), opened.preprocessing, limits)
    door = socket.create_server(("127.0.0.1", 0))
    made = app.create(found, token=token)
    server = uvicorn.Server(http_server.config(made))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [door]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    url = f"http://127.0.0.1:{door.getsockname()[1]}"
    try:
        with httpx.Client(base_url=url, timeout=20) as client:
            yield Running(url, found, client)
    finally:
        server.should_exit = True
        thread.join(20)
        door.close()
