"""The HTTP server: from the open port to the last response."""

from __future__ import annotations

import asyncio
import logging
import socket
from ipaddress import ip_address
from types import FrameType
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp

from taskgraft.data.transforms import Preprocessing
from taskgraft.errors import InputError, SetupError
from taskgraft.serving.app import create_app
from taskgraft.serving.limits import Limits
from taskgraft.serving.middleware import LOCAL_HOSTS, format_error, log
from taskgraft.serving.model import ServedModel
from taskgraft.serving.service import Service
from taskgraft.types import Callbacks

NOTICE_SECONDS = 0.5  # after SIGTERM, in which health checks still learn that the server stops
DRAIN_SECONDS = 30.0  # that requests in progress may take after SIGTERM
MIN_TOKEN = 8  # characters
MAX_HEADERS = 16 * 2**10  # bytes of the request line with all headers, and of a chunk's header


def check_access(host: str, token: str | None, *, insecure: bool) -> bool:
    """Check that a server which other machines can reach has a token; return whether only this machine can.

    Raises:
        InputError: the token is weak, or missing for a host that is not local and not `insecure`.
    """
    if token is not None and (len(token) < MIN_TOKEN or not token.isascii() or not token.isprintable() or " " in token):
        raise InputError(f"invalid --token; use at least {MIN_TOKEN} printable ASCII characters without spaces")
    local_only = host in LOCAL_HOSTS or _is_loopback(host)
    if not local_only and token is None and not insecure:
        raise InputError(
            f"--host {host} is reachable from other machines: set --token (or TASKGRAFT_TOKEN), "
            "or --insecure if a reverse proxy authenticates clients"
        )
    return local_only


def open_socket(host: str, port: int) -> socket.socket:
    """Listen on a port; 0 picks a free one.

    Raises:
        SetupError: the port is in use or not allowed.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=2048)
        # asyncio does so only for a socket that names its protocol: otherwise the body of a response waits 40 ms for
        # the client's delayed acknowledgement of the headers (Nagle); accepted connections inherit it
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except (OSError, OverflowError) as error:
        raise SetupError(f"cannot listen on {host} port {port}: {error}; choose another --port or --host") from error


def serve_model(
    model: ServedModel, preprocessing: Preprocessing, limits: Limits, listener: socket.socket, *, token: str | None,
    local_only: bool, callbacks: Callbacks,
) -> None:  # fmt: skip
    """Serve until SIGTERM or SIGINT, then answer the requests in progress and return.

    Args:
        model: the model.
        preprocessing: how images are prepared for it.
        limits: limits on requests.
        listener: an open socket, see `open_socket`.
        token: bearer token of the clients.
        local_only: accept only requests that name localhost as their host, see `check_access`.
        callbacks: `info` gets the address once the server is ready.

    Raises:
        SetupError: a decoding process did not start.
    """
    service = Service(model, preprocessing, limits)
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    config = configure_uvicorn(create_app(service, token=token, local_only=local_only))
    asyncio.run(DrainingServer(config, service, callbacks).serve(sockets=[listener]))


def configure_uvicorn(app: ASGIApp) -> uvicorn.Config:
    """Settings of uvicorn: the same HTTP parser on every machine, and no trust in the headers of proxies."""
    return uvicorn.Config(
        app, http="h11", h11_max_incomplete_event_size=MAX_HEADERS, proxy_headers=False, ws="none", lifespan="on",
        log_config=None, access_log=False, server_header=False, timeout_keep_alive=30,
        timeout_graceful_shutdown=int(DRAIN_SECONDS),
    )  # fmt: skip


class DrainingServer(uvicorn.Server):
    """A uvicorn server that reports not ready and finishes the requests in progress before it closes its port."""

    def __init__(self, config: uvicorn.Config, service: Service, callbacks: Callbacks) -> None:
        super().__init__(config)
        self.service = service
        self.callbacks = callbacks

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain on the first signal, quit on the second. (uvicorn would raise the signal again after serving.)"""
        self.force_exit = self.should_exit
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start serving and report the address."""
        asyncio.get_running_loop().set_exception_handler(_log_loop_error)
        await super().startup(sockets)
        if self.started and sockets:
            host, port = sockets[0].getsockname()[:2]
            url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
            self.callbacks.info(f"ready: {url}   try: curl --data-binary @IMAGE.jpg {url}/predict")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Wait for the requests in progress, then stop."""
        service, loop = self.service, asyncio.get_running_loop()
        service.draining = True
        self.callbacks.info(f"stopping after {service.active_requests} request(s) in progress")
        notice_end, drain_end = loop.time() + NOTICE_SECONDS, loop.time() + DRAIN_SECONDS
        while not self.force_exit and (
            loop.time() < notice_end or (service.active_requests and loop.time() < drain_end)
        ):
            await asyncio.sleep(0.02)
        await super().shutdown(sockets)


def _log_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Replace asyncio's report, which quotes what a client sent; broken HTTP is not worth a line."""
    error = context.get("exception")
    if not isinstance(error, h11.ProtocolError | ConnectionError):
        log.error("%s: %s", context["message"], format_error(error) if error else "")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
