"""ASGI middleware around every request: authentication, security headers, metrics, and errors without details."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import time
import traceback
from collections.abc import Mapping
from urllib.parse import urlsplit

import h11
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from taskgraft.serving.service import Service

LOCAL_HOSTS = {"localhost", "127.0.0.1", "::1"}
PUBLIC_PREFIXES = ("/page/", "/v2/health/")  # open without a token, as is "/": the page, and health checks
COUNTED_STATUSES = (401, 403, 408, 413, 429, 503)  # in the metric taskgraft_rejected
RETRY_AFTER = {429: "1", 503: "5"}  # seconds
SECURITY_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "cache-control": "no-store",
}
LINGER_SECONDS = 2.0  # that a client may keep sending after its response, if the connection is then closed

log = logging.getLogger("taskgraft.serving")


def error_response(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """A response {"error": message}, with Retry-After or WWW-Authenticate where the status calls for it."""
    headers = dict(headers or {})
    if status in RETRY_AFTER:
        headers["Retry-After"] = RETRY_AFTER[status]
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse({"error": message}, status, headers)


def format_error(error: BaseException) -> str:
    """An exception for the log: a short, escaped message, since it may quote a request, and the traceback."""
    return f"{type(error).__name__} {str(error)[:160]!a}\n{''.join(traceback.format_tb(error.__traceback__))}"


class Guard:
    """Middleware that authenticates requests, adds headers to responses, counts both, and hides internal errors.

    Attributes:
        app: the wrapped application.
        service: the service it belongs to.
        token: what clients must send as a bearer token; None = no authentication.
        local_only: the server listens on this machine only, so any other name in Host is DNS rebinding.
    """

    def __init__(self, app: ASGIApp, service: Service, token: str | None, local_only: bool) -> None:
        self.app = app
        self.service = service
        self.token = token
        self.local_only = local_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Process one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start = time.perf_counter()
        exchange = _Exchange(self.service, scope, receive, send)
        try:
            try:
                self._authorize(scope["path"], Headers(scope=scope))
                await self.app(scope, exchange.receive, exchange.send)
            except HTTPException as error:
                await error_response(error.status_code, error.detail)(scope, exchange.receive, exchange.send)
            except Exception as error:  # the client must not learn anything about it
                log.error("a request failed: %s", format_error(error))
                if not exchange.status:
                    response = error_response(500, "internal error; see the server's log")
                    await response(scope, exchange.receive, exchange.send)
        finally:
            self._count(scope, exchange.status, time.perf_counter() - start)

    def _authorize(self, path: str, headers: Headers) -> None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if "transfer-encoding" in headers and "content-length" in headers:
            # request smuggling: a proxy in front of this server may have used the other one
            raise HTTPException(400, "give either Content-Length or Transfer-Encoding, not both")
        if self.local_only and not self.token and _split_url(f"//{host}", "hostname") not in LOCAL_HOSTS:
            raise HTTPException(403, "this server only accepts requests addressed to localhost")
        if origin is not None and _split_url(origin, "netloc").lower() != host.lower():
            raise HTTPException(403, "requests from pages of other origins are not allowed")
        if self.token is None or path == "/" or path.startswith(PUBLIC_PREFIXES):
            return
        scheme, _, credentials = headers.get("authorization", "").partition(" ")
        is_valid = hmac.compare_digest(credentials.strip().encode("latin-1"), self.token.encode())
        if scheme.lower() != "bearer" or not is_valid:
            raise HTTPException(401, "missing or wrong token; send Authorization: Bearer TOKEN")

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        path = str(getattr(scope.get("route"), "path", "other"))
        self.service.metrics.requests.labels(path, str(status)).inc()
        self.service.metrics.latency.labels(path).observe(seconds)
        if status in COUNTED_STATUSES:
            self.service.metrics.rejected.labels(str(status)).inc()


class _Exchange:
    """One request and its response.

    Attributes:
        status: status of the response; 0 before it begins.
        body_complete: all of the request's body was received.
        closing: the connection is closed after the response.
    """

    def __init__(self, service: Service, scope: Scope, receive: Receive, send: Send) -> None:
        self.status = 0
        self.body_complete = False
        self.closing = False
        self._service = service
        self._headers = Headers(scope=scope)
        self._receive = receive
        self._send = send

    async def receive(self) -> Message:
        message = await self._receive()
        self.body_complete = not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.closing = self._must_close()
            headers = MutableHeaders(scope=message)
            headers.update(SECURITY_HEADERS)
            if self.closing:
                headers["connection"] = "close"
        elif self.closing and not self.body_complete and not message.get("more_body"):
            await self._pass_on({**message, "more_body": True})
            await self._drain_body()
            message = {"type": "http.response.body"}
        await self._pass_on(message)

    async def _pass_on(self, message: Message) -> None:
        with contextlib.suppress(h11.LocalProtocolError):  # the client's HTTP is broken, and it already has its 400
            await self._send(message)

    def _must_close(self) -> bool:
        """Whether the server stops, or more of a body would follow that nobody will read."""
        if self._service.draining or self.status == 408:
            return True
        length = self._headers.get("content-length", "0")
        too_large = length.isdecimal() and int(length) > self._service.limits.max_body * 2**20
        if "transfer-encoding" in self._headers:
            return not self.body_complete or "content-length" in self._headers
        return too_large and not self.body_complete

    async def _drain_body(self) -> None:
        """Let the client finish sending: closing the connection earlier could lose the response."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while (await self.receive()).get("more_body", False):
                    pass


def _split_url(url: str, part: str) -> str:
    """One part of a URL; "" where it cannot be parsed."""
    try:
        return getattr(urlsplit(url), part) or ""
    except ValueError:
        return ""
