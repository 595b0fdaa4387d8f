"""Before and after every request: who may ask, what the answer's headers say, what is counted, and no trace leaks."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import time
import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

import h11

from taskgraft.serving.limits import Refusal
from taskgraft.serving.service import Service

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOCAL = {"localhost", "127.0.0.1", "::1"}
OPEN = ("/", "/page/", "/v2/health/")  # asked without a token: the page itself, and what orchestrators ask
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"content-security-policy", POLICY.encode()),
    (b"cache-control", b"no-store"),
)

LINGER = 2.0  # seconds that a client may go on sending after its answer, where the connection then ends

log = logging.getLogger("taskgraft.serving")


def guarded(app: App, service: Service, *, token: str | None, local: bool) -> App:
    """The application behind its guard. `local`: it listens on this machine alone, so other Host names are tricks."""

    async def guard(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await app(scope, receive, send)
            return
        start = time.perf_counter()
        seen: dict[str, Any] = {"status": 0, "whole": False, "closes": False}

        async def hear() -> MutableMapping[str, Any]:
            message = await receive()
            seen["whole"] = not message.get("more_body", False)
            return message

        async def tell(message: MutableMapping[str, Any]) -> None:
            with contextlib.suppress(h11.LocalProtocolError):  # the client's HTTP is broken, and it was told already
                await send(message)

        async def answer(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                seen["status"] = message["status"]
                seen["closes"] = _closes(service, scope, message["status"], whole=seen["whole"])
                headers = [*message.get("headers", ()), *HEADERS]
                message["headers"] = [*headers, (b"connection", b"close")] if seen["closes"] else headers
            elif seen["closes"] and not seen["whole"] and not message.get("more_body"):
                await tell({**message, "more_body": True})
                await _spent(hear)
                message = {"type": "http.response.body"}
            await tell(message)

        try:
            refused = _refused(scope, token, local)
            if refused:
                await _say(answer, refused)
            else:
                await app(scope, hear, answer)
        except Exception as error:  # nothing of it may reach the client
            log.error("a request failed: %s", told(error))
            if not seen["status"]:
                await _say(answer, Refusal(500, "internal error; the server's log has more"))
        finally:
            _count(service, scope, seen["status"], time.perf_counter() - start)

    return guard


def _refused(scope: Scope, token: str | None, local: bool) -> Refusal | None:
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    host, origin = headers.get("host", ""), headers.get("origin")
    if "transfer-encoding" in headers and "content-length" in headers:
        # two ways to tell where the body ends: whoever stands before this server may have taken the other one
        return Refusal(400, "give Content-Length or Transfer-Encoding, not both")
    if local and not token and _name(host) not in LOCAL:
        return Refusal(403, "this server answers to localhost alone")  # a foreign name that points here (DNS rebinding)
    if origin is not None and _place(origin) != host.lower():
        return Refusal(403, "pages of other origins may not ask this server")
    path = scope["path"]
    if token is None or path == OPEN[0] or path.startswith(OPEN[1:]):
        return None
    scheme, _, given = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode("latin-1"), token.encode()):
        return None
    return Refusal(401, "give the server's token: Authorization: Bearer TOKEN")


def _name(host: str) -> str:
    """The name in a Host header, without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _place(origin: str) -> str | None:
    """The name and port in an Origin header; None where it cannot be read."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


def _closes(service: Service, scope: Scope, status: int, *, whole: bool) -> bool:
    """Whether the connection ends with this answer: at the end of the server, and where a body might never end."""
    if service.state["draining"] or status == 408:
        return True
    headers = dict(scope["headers"])
    length = headers.get(b"content-length", b"0")
    large = length.isdigit() and int(length) > service.limits.max_body * 2**20
    both = b"transfer-encoding" in headers and (not whole or b"content-length" in headers)
    return both or (large and not whole)


async def _spent(hear: Receive) -> None:
    """Let a client finish what it is sending: if the connection were closed before, its answer could be lost."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER):
            while (await hear()).get("more_body", False):
                pass


def told(error: BaseException) -> str:
    """What failed and where, for the log. Little of the message, in signs that no terminal acts on: it may quote a
    request.
    """
    return f"{type(error).__name__} {str(error)[:160]!a}\n{''.join(traceback.format_tb(error.__traceback__))}"


async def _say(send: Send, refused: Refusal) -> None:
    body = json.dumps({"error": refused.message}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if refused.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _count(service: Service, scope: Scope, status: int, seconds: float) -> None:
    route = scope.get("route")
    path = str(getattr(route, "path", "other"))
    service.gauges.requests.labels(path, str(status)).inc()
    service.gauges.seconds.labels(path).observe(seconds)
    if status in (401, 403, 408, 413, 429, 503):
        service.gauges.rejected.labels(str(status)).inc()
