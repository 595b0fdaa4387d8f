"""A server asked for twice its capacity, one request in twenty malformed: what good clients notice of it.

Part of benchmarks/serving.py (`--only abuse`). Clients speak HTTP themselves, byte by byte: a client library costs more
processor time than the server that it asks. On a machine that both share, what is measured is the latency of both.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from malformed_requests import CONNECTION_CLOSED, Malformed, make_requests, post_request, request_head

SHARE = 0.05  # of requests that are malformed
TIMES = 2.0  # the capacity
LINES = 512  # connections of good clients at most
PATIENCE = 60.0  # seconds after which a client gives up
EVERY = 0.25  # seconds between two questions whether the server is ready


class Reply(NamedTuple):
    """The status (CUT = closed without an answer) and whether the connection can be used again."""

    status: int
    stays: bool


@dataclass(frozen=True)
class Seen:
    """What clients noticed. `times` seconds of good requests by status, `wrong` bad answers to malformed ones."""

    times: dict[int, list[float]] = field(default_factory=dict)
    malformed: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    ready: list[float] = field(default_factory=list)
    unready: list[str] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)
    failed: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Clients:
    """Connections that good clients share; `idle` are open and free."""

    port: int
    idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]
    count: dict[str, int]


async def ask(clients: Clients, sent: bytes) -> Reply:
    """One good request over a connection that is open, or a new one."""
    reader, writer = clients.idle.pop() if clients.idle else await asyncio.open_connection("127.0.0.1", clients.port)
    reply = await exchange(reader, writer, sent)
    if reply.stays:
        clients.idle.append((reader, writer))
    else:
        writer.close()
    return reply


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, sent: bytes) -> Reply:
    """Send bytes and read one answer."""
    try:
        writer.write(sent)
        with contextlib.suppress(ConnectionError):  # the answer may be there all the same
            await writer.drain()
        told = await reader.readuntil(b"\r\n\r\n")
        lower = told.lower()
        if lower.startswith(b"http/1.1 100"):
            told = await reader.readuntil(b"\r\n\r\n")
            lower = told.lower()
        length = lower.partition(b"content-length: ")[2]
        if length:
            await reader.readexactly(int(length.split(b"\r\n")[0]))
        return Reply(int(told.split(b" ", 2)[1]), bool(length) and b"connection: close" not in lower)
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError, ValueError, IndexError):
        return Reply(CONNECTION_CLOSED, stays=False)


async def good(clients: Clients, sent: bytes, seen: Seen) -> None:
    start = time.perf_counter()
    try:
        reply = await asyncio.wait_for(ask(clients, sent), PATIENCE)
        seen.times.setdefault(reply.status, []).append(time.perf_counter() - start)
    except (TimeoutError, OSError) as error:
        seen.failed[type(error).__name__] += 1
    finally:
        clients.count["open"] -= 1


async def bad(port: int, name: str, kind: Malformed, seen: Seen) -> None:
    """A malformed request on a connection of its own; what else may be sent there is not waited for."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        reply = await asyncio.wait_for(exchange(reader, writer, kind.sent), PATIENCE)
        writer.close()
        allowed = (*kind.statuses, 429, 503)
        seen.malformed[str(reply.status)] += 1
        if reply.status not in allowed:
            seen.wrong[f"{name}: {reply.status}"] += 1
    except (TimeoutError, OSError) as error:
        seen.wrong[f"{name}: {type(error).__name__}"] += 1


async def closed_loop(port: int, bodies: list[bytes], clients: int, seconds: float) -> tuple[float, list[float]]:
    """So many clients, each of which asks again when it is answered: answers per second, and their times."""
    times: list[float] = []
    end = time.perf_counter() + seconds

    async def one(number: int) -> None:
        own, turn = Clients(port, [], {"open": 0}), number
        while (start := time.perf_counter()) < end:
            reply = await ask(own, bodies[turn % len(bodies)])
            assert reply.status in (200, 429), reply
            if reply.status == 200:
                times.append(time.perf_counter() - start)
            turn += clients
        for _, writer in own.idle:
            writer.close()

    await asyncio.gather(*(one(number) for number in range(clients)))
    return len(times) / seconds, times


async def flood(
    port: int, bodies: list[bytes], kinds: dict[str, Malformed], lr: float, seconds: float, seen: Seen,
    resident: Callable[[], float], stop: Callable[[], None] | None = None,
) -> None:  # fmt: skip
    """Requests come at `rate`, whether or not earlier ones are answered; `stop` is called while some still wait."""
    rng, clients = random.Random(1), Clients(port, [], {"open": 0})
    names, tasks = list(kinds), set()
    start, number = time.perf_counter(), 0
    watching = asyncio.create_task(callbacks(port, seen, resident, start))
    while (now := time.perf_counter()) < start + seconds:
        await asyncio.sleep(max(0.0, start + number / lr - now))
        number += 1
        if names and rng.random() < SHARE:
            name = rng.choice(names)
            task = asyncio.create_task(bad(port, name, kinds[name], seen))
        elif clients.count["open"] < LINES:
            clients.count["open"] += 1
            task = asyncio.create_task(good(clients, bodies[number % len(bodies)], seen))
        else:
            seen.failed["no connection left"] += 1
            continue
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    if stop:
        stop()
    await asyncio.gather(*tasks)
    watching.cancel()
    for _, writer in clients.idle:
        writer.close()


async def callbacks(port: int, seen: Seen, resident: Callable[[], float], start: float) -> None:
    """Ask for readiness all the while, and look at the memory every few seconds."""
    asked, looked = request_head("GET", "/v2/health/ready"), 0.0
    while True:
        began = time.perf_counter()
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            reply = await asyncio.wait_for(exchange(reader, writer, asked), 5)
            writer.close()
            seen.ready.append(time.perf_counter() - began)
            if reply.status != 200:
                seen.unready.append(str(reply.status))
        except (TimeoutError, OSError) as error:
            seen.unready.append(type(error).__name__)
        if began - looked > 2:
            looked = began
            seen.memory.append((began - start, await asyncio.to_thread(resident)))
        await asyncio.sleep(EVERY)


def told(seen: Seen, unloaded: list[float]) -> dict[str, Any]:
    """The figures, and whether each promise was kept."""
    accepted = seen.times.get(200, [])
    settled = [size for at, size in seen.memory if at >= 0.2 * seen.memory[-1][0]] or [0.0, 0.0]
    tenth = max(1, len(settled) // 5)
    first, last = statistics.mean(settled[:tenth]), statistics.mean(settled[-tenth:])
    ratio = quantile(accepted, 99) / quantile(unloaded, 99)
    statuses = {str(status): len(times) for status, times in sorted(seen.times.items())}
    server_errors = sum(count for status, count in [*statuses.items(), *seen.malformed.items()] if status[0] == "5")
    allowed = statuses.get("503", 0) + seen.malformed["503"]
    return {
        "statuses": statuses,
        "malformed": dict(sorted(seen.malformed.items())),
        "malformed_answered_otherwise": dict(seen.wrong),
        "clients_failed": dict(seen.failed),
        "unloaded_ms": {f"p{share}": round(1000 * quantile(unloaded, share), 2) for share in (50, 95, 99)},
        "accepted_ms": {f"p{share}": round(1000 * quantile(accepted, share), 2) for share in (50, 95, 99)},
        "p99_times_unloaded": round(ratio, 2),
        "resident_mib": {"after_a_fifth": round(first, 1), "at_the_end": round(last, 1)},
        "growth": round(last / first - 1, 4) if first else 0.0,
        "ready_asked": len(seen.ready) + len(seen.unready),
        "not_ready": dict(Counter(seen.unready)),
        "ready_slowest_ms": round(1000 * max(seen.ready, default=0.0), 1),
        "kept": {
            "no 5xx but 503": server_errors == allowed and not seen.wrong,
            "p99 under 3 times the unloaded": ratio < 3,
            "memory flat": not first or last / first < 1.02,
            "ready throughout": not seen.unready,
        },
    }


def quantile(times: list[float], share: int) -> float:
    if len(times) < 2:
        return float("nan")
    return statistics.quantiles(times, n=100, method="inclusive")[share - 1]


def stopping(process: subprocess.Popen[str], port: int, bodies: list[bytes], lr: float) -> dict[str, Any]:
    """SIGTERM in the middle of a flood: which requests that were made before it are not answered in full."""
    seen = Seen()
    asyncio.run(flood(port, bodies, {}, lr, 3, seen, lambda: 0.0, lambda: process.send_signal(signal.SIGTERM)))
    code = process.wait(60)
    assert process.stderr
    lines = process.stderr.read().splitlines()
    statuses = {str(status): len(times) for status, times in sorted(seen.times.items())}
    return {
        "log_lines": len(lines),
        "log_starts": lines[:5],
        "answers": statuses,
        "dropped": statuses.get(str(CONNECTION_CLOSED), 0) + sum(seen.failed.values()),
        "exit_code": code,
    }


def kinds_of(model: str, size: int) -> dict[str, Malformed]:
    """Malformed requests, but for those of megabytes: they would measure the loopback device."""
    return {name: kind for name, kind in make_requests(model, size).items() if len(kind.sent) < 300_000}


def good_bodies(pictures: list[bytes]) -> list[bytes]:
    return [post_request("/predict", image) for image in pictures]


def run(
    serve: Callable[..., contextlib.AbstractContextManager[Any]], pictures: list[bytes], seconds: float,
    flags: list[str], resident: Callable[[int], float],
) -> dict[str, Any]:  # fmt: skip
    """Capacity and the unloaded latency of a server with its defaults; then the flood of one that is told how long
    requests may wait; then its end.
    """
    bodies, short = good_bodies(pictures), min(30.0, max(5.0, seconds / 10))
    with serve(*flags) as server:
        port = int(server.url.rsplit(":", 1)[1])
        asyncio.run(closed_loop(port, bodies, 16, 3))  # everything is warm
        _, alone = asyncio.run(closed_loop(port, bodies, 1, short))
        capacity, _ = asyncio.run(closed_loop(port, bodies, 32, short))
    wait = max(0.002, quantile(alone, 50))
    seen, kinds = Seen(), kinds_of("model", server.size)
    with serve(*flags, "--wait-seconds", f"{wait:.4f}") as server:
        port = int(server.url.rsplit(":", 1)[1])
        asyncio.run(closed_loop(port, bodies, 4, 3))
        asyncio.run(flood(port, bodies, kinds, TIMES * capacity, seconds, seen, lambda: resident(server.process.pid)))
        end = stopping(server.process, port, bodies, TIMES * capacity)
    return {
        "seconds": seconds, "flags": flags, "wait_seconds": round(wait, 4),
        "capacity_requests_per_second": round(capacity, 1),
        **told(seen, alone), "sigterm": {**end, "kept": end["dropped"] == 0 and end["exit_code"] == 0},
    }  # fmt: skip
