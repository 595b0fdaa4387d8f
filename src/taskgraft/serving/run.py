"""A server in this process, from the open port to the last answer."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from ipaddress import ip_address

import uvicorn

from taskgraft.data.preprocess import Preprocess
from taskgraft.problem import Problem
from taskgraft.serving import app, service
from taskgraft.serving.guard import LOCAL
from taskgraft.serving.limits import Limits, checked
from taskgraft.serving.model import Served
from taskgraft.serving.service import Service
from taskgraft.types import Watch

DRAIN = 30.0  # seconds that requests under way may take once the server is told to stop
SHORTEST = 8  # characters of a token


def admit(host: str, token: str | None, *, insecure: bool) -> bool:
    """Whether the host is this machine alone; raises Problem for one that is not, without a token."""
    if token is not None and (len(token) < SHORTEST or not token.isascii() or not token.isprintable() or " " in token):
        raise Problem(f"--token must have at least {SHORTEST} printable ASCII characters and no spaces")
    local = host in LOCAL or _loopback(host)
    if not local and token is None and not insecure:
        raise Problem(
            f"--host {host} can be reached from other machines: give --token (or the variable TASKGRAFT_TOKEN), "
            "or --insecure if something in front of it asks who is there"
        )
    return local


def listen(host: str, port: int) -> socket.socket:
    """An open port; 0 picks a free one. Raises Problem where it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        door = socket.create_server((host, port), family=family, backlog=2048)
        # asyncio does so only for a socket that names its protocol: else an answer's body waits 40 ms for the
        # client's delayed acknowledgement of its headers (Nagle); what is accepted here inherits it
        door.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return door
    except (OSError, OverflowError) as error:
        raise Problem(
            f"{host} port {port} cannot be opened: {error}; choose another --port or --host", code=3
        ) from error


def serve(
    served: Served, wanted: Preprocess, limits: Limits, door: socket.socket, *, token: str | None, local: bool,
    watch: Watch,
) -> None:  # fmt: skip
    """Answer requests at an open port until SIGTERM or SIGINT, then answer those under way and return."""
    found = service.assemble(served, wanted, checked(limits))
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    config = uvicorn.Config(
        app.create(found, token=token, local=local),  # pyright: ignore[reportArgumentType]
        log_config=None, access_log=False, server_header=False, lifespan="on", timeout_keep_alive=30,
        timeout_graceful_shutdown=int(DRAIN), ws="none",
    )  # fmt: skip
    asyncio.run(_until_told(uvicorn.Server(config), found, door, watch))


async def _until_told(server: uvicorn.Server, found: Service, door: socket.socket, watch: Watch) -> None:
    loop = asyncio.get_running_loop()
    running = asyncio.create_task(server.serve(sockets=[door]))
    while not server.started and not running.done():
        await asyncio.sleep(0.01)
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):  # after uvicorn has set its own, which know no readiness
        loop.add_signal_handler(number, _tell, told, server)
    host, port = door.getsockname()[:2]
    watch.say(f"ready: http://{f'[{host}]' if ':' in host else host}:{port}")
    waiting = asyncio.create_task(told.wait())
    await asyncio.wait([running, waiting], return_when=asyncio.FIRST_COMPLETED)
    if told.is_set():
        found.state["draining"] = 1
        watch.say(f"stopping: {found.state['requests']} request(s) under way are answered first")
        end = loop.time() + DRAIN
        while found.state["requests"] and loop.time() < end and not server.force_exit:
            await asyncio.sleep(0.02)
        server.should_exit = True
    waiting.cancel()
    await running


def _tell(told: asyncio.Event, server: uvicorn.Server) -> None:
    """The first signal asks, the second one insists."""
    if told.is_set():
        server.force_exit = True
    told.set()


def _loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
