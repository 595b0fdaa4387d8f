"""A server in this process, from the open port to the last answer."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from ipaddress import ip_address
from typing import Any

import h11
import uvicorn

from taskgraft.data.transforms import Preprocessing
from taskgraft.errors import InputError, SetupError
from taskgraft.serving import app, service
from taskgraft.serving.limits import Limits, checked
from taskgraft.serving.middleware import LOCAL, App, log, told
from taskgraft.serving.model import Served
from taskgraft.serving.service import Service
from taskgraft.types import Callbacks

GRACE = 0.5  # seconds in which requests that are on the way while the server stops still hear that it does
DRAIN = 30.0  # seconds that requests under way may take once the server is told to stop
SHORTEST = 8  # characters of a token
HEAD = 16 * 2**10  # bytes of a request line with all headers, and of a chunk's


def admit(host: str, token: str | None, *, insecure: bool) -> bool:
    """Whether the host is this machine alone; raises TaskgraftError for one that is not, without a token."""
    if token is not None and (len(token) < SHORTEST or not token.isascii() or not token.isprintable() or " " in token):
        raise InputError(
            "--token is too short or holds other signs; "
            f"give {SHORTEST} or more printable ASCII characters without spaces"
        )
    local = host in LOCAL or _loopback(host)
    if not local and token is None and not insecure:
        raise InputError(
            f"--host {host} can be reached from other machines: give --token (or the variable TASKGRAFT_TOKEN), "
            "or --insecure if something in front of it asks who is there"
        )
    return local


def listen(host: str, port: int) -> socket.socket:
    """An open port; 0 picks a free one. Raises TaskgraftError where it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        door = socket.create_server((host, port), family=family, backlog=2048)
        # asyncio does so only for a socket that names its protocol: else an answer's body waits 40 ms for the
        # client's delayed acknowledgement of its headers (Nagle); what is accepted here inherits it
        door.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return door
    except (OSError, OverflowError) as error:
        raise SetupError(f"{host} port {port} cannot be opened: {error}; choose another --port or --host") from error


def serve(
    served: Served, wanted: Preprocessing, limits: Limits, door: socket.socket, *, token: str | None, local: bool,
    callbacks: Callbacks,
) -> None:  # fmt: skip
    """Answer requests at an open port until SIGTERM or SIGINT, then answer those under way and return."""
    found = service.assemble(served, wanted, checked(limits))
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    made = config(app.create(found, token=token, local=local))
    asyncio.run(_until_told(uvicorn.Server(made), found, door, callbacks))


def config(made: App) -> uvicorn.Config:
    """How HTTP is spoken: one parser wherever it runs, and nothing believed of what proxies add."""
    return uvicorn.Config(
        made,  # pyright: ignore[reportArgumentType]
        http="h11", h11_max_incomplete_event_size=HEAD, proxy_headers=False, ws="none", lifespan="on", log_config=None,
        access_log=False, server_header=False, timeout_keep_alive=30, timeout_graceful_shutdown=int(DRAIN),
    )  # fmt: skip


async def _until_told(server: uvicorn.Server, found: Service, door: socket.socket, callbacks: Callbacks) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_failed)
    running = asyncio.create_task(server.serve(sockets=[door]))
    while not server.started and not running.done():
        await asyncio.sleep(0.01)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):  # after uvicorn has set its own, which know no readiness
        loop.add_signal_handler(number, _tell, stop, server)
    host, port = door.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    callbacks.info(f"ready: {url}   try: curl --data-binary @PICTURE.jpg {url}/predict")
    waiting = asyncio.create_task(stop.wait())
    await asyncio.wait([running, waiting], return_when=asyncio.FIRST_COMPLETED)
    if stop.is_set():
        found.state["draining"] = 1
        callbacks.info(f"stopping: {found.state['requests']} request(s) under way are answered first")
        first, end = loop.time() + GRACE, loop.time() + DRAIN
        while (found.state["requests"] or loop.time() < first) and loop.time() < end and not server.force_exit:
            await asyncio.sleep(0.02)
        server.should_exit = True
    waiting.cancel()
    await running


def _tell(stop: asyncio.Event, server: uvicorn.Server) -> None:
    """The first signal asks, the second one insists."""
    if stop.is_set():
        server.force_exit = True
    stop.set()


def _failed(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """In the place of asyncio's own report, which quotes what a client sent; broken HTTP is no news at all."""
    error = context.get("exception")
    if not isinstance(error, h11.ProtocolError | ConnectionError):
        log.error("%s: %s", context["message"], told(error) if error else "")


def _loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
