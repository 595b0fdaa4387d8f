"""Before and after every request: who may ask, what the answer's headers say, what is counted, and no trace leaks."""

from __future__ import annotations

import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

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

log = logging.getLogger("taskgraft.serving")


def guarded(app: App, service: Service, *, token: str | None, local: bool) -> App:
    """The application behind its guard. `local`: it listens on this machine alone, so other Host names are tricks."""

    async def guard(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await app(scope, receive, send)
            return
        start, seen = time.perf_counter(), {"status": 0}

        async def answer(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                seen["status"] = message["status"]
                message["headers"] = [*message.get("headers", ()), *HEADERS]
            await send(message)

        refused = _refused(scope, token, local)
        try:
            if refused:
                await _say(answer, refused)
            else:
                await app(scope, receive, answer)
        except Exception:  # nothing of it may reach the client
            log.exception("a request failed")
            if not seen["status"]:
                await _say(answer, Refusal(500, "internal error; the server's log has more"))
        finally:
            _count(service, scope, seen["status"], time.perf_counter() - start)

    return guard


def _refused(scope: Scope, token: str | None, local: bool) -> Refusal | None:
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    host, origin = headers.get("host", ""), headers.get("origin")
    if local and not token and _name(host) not in LOCAL:
        return Refusal(403, "this server answers to localhost alone")  # a foreign name that points here (DNS rebinding)
    if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
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
