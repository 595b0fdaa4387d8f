"""A real `taskgraft serve` under load: throughput and latency, overload, a soak, and requests made from its OpenAPI.

    .venv/bin/python benchmarks/serving.py BUNDLE PICTURES --seconds 20 --soak 10 --abuse 10

The server is a process of its own on this machine, asked over loopback by this one; both share the processor, so the
figures are what a client on the same machine sees. Writes benchmarks/results/serving.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import abuse
import httpx

from taskgraft.data.layouts import list_images

PARTS = ("load", "openapi", "abuse")
FACTOR = 10  # overload: times the capacity
TIMEOUT = 60.0


class Server(NamedTuple):
    url: str
    process: subprocess.Popen[str]
    name: str
    size: int


Ask = Callable[[httpx.AsyncClient, int], Awaitable[httpx.Response]]


@contextmanager
def served(bundle: str, *flags: str) -> Iterator[Server]:
    words = [sys.executable, "-m", "taskgraft.cli", "serve", bundle, "--port", "0", "--name", "model", *flags]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        for line in process.stderr:
            if line.startswith("ready: "):
                break
        url = line.split()[1]
        found = httpx.get(f"{url}/v2/models/model").json()
        yield Server(url, process, "model", found["inputs"][0]["shape"][1])
        process.terminate()
        assert process.wait(60) == 0, "the server did not stop in order"


def asking(server: Server, bodies: list[bytes]) -> dict[str, Ask]:
    """A JPEG to /predict, and one image's pixels by the binary protocol."""

    async def predict(client: httpx.AsyncClient, turn: int) -> httpx.Response:
        return await client.post("/predict", content=bodies[turn % len(bodies)])

    body, headers = tensor(server, 1)

    async def infer(client: httpx.AsyncClient, turn: int) -> httpx.Response:
        return await client.post("/v2/models/model/infer", content=body, headers=headers)

    return {"POST /predict, JPEG": predict, "V2 infer, uint8 pixels": infer}


def tensor(server: Server, count: int) -> tuple[bytes, dict[str, str]]:
    length = count * server.size**2 * 3
    given = {
        "name": "image", "shape": [count, server.size, server.size, 3], "datatype": "UINT8",
        "parameters": {"binary_data_size": length},
    }  # fmt: skip
    text = json.dumps({"inputs": [given], "parameters": {"binary_data_output": True}}).encode()
    return text + os.urandom(length), {"Inference-Header-Content-Length": str(len(text))}


def client_of(server: Server, clients: int) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    return httpx.AsyncClient(base_url=server.url, limits=limits, timeout=TIMEOUT)


async def closed_loop(server: Server, ask: Ask, clients: int, seconds: float) -> dict[str, Any]:
    """So many clients, each of which asks again as soon as it is answered."""
    times: list[float] = []
    statuses: Counter[int] = Counter()

    async def one(number: int) -> None:
        turn = number
        async with client_of(server, 1) as client:  # a pool of its own: a common one of 64 starves some of its users
            await ask(client, turn)
            ready.append(number)
            while len(ready) < clients:  # all connections are made
                await asyncio.sleep(0.01)
            end = time.perf_counter() + seconds
            while (start := time.perf_counter()) < end:
                answer = await ask(client, turn)
                times.append(time.perf_counter() - start)
                statuses[answer.status_code] += 1
                turn += clients

    ready: list[int] = []
    await asyncio.gather(*(one(number) for number in range(clients)))
    return {
        "clients": clients,
        "requests_per_second": round(len(times) / seconds, 1),
        **percentiles(times),
        "statuses": {str(status): count for status, count in sorted(statuses.items())},
    }


def percentiles(times: list[float]) -> dict[str, float]:
    if len(times) < 2:
        return {}
    cuts = statistics.quantiles(times, n=100, method="inclusive")
    return {f"p{share}_ms": round(1000 * cuts[share - 1], 2) for share in (50, 95, 99)}


async def overload(server: Server, capacity: float, batch: int, seconds: float) -> dict[str, Any]:
    """Requests of `batch` images come at FACTOR times the capacity, whether or not earlier ones are answered."""
    body, headers = tensor(server, batch)
    lr = FACTOR * capacity / batch
    found: list[tuple[str, float]] = []

    async def one(client: httpx.AsyncClient) -> None:
        start = time.perf_counter()
        try:
            answer = await client.post("/v2/models/model/infer", content=body, headers=headers)
            found.append((str(answer.status_code), time.perf_counter() - start))
        except httpx.TimeoutException:
            found.append(("time-out", time.perf_counter() - start))
        except httpx.HTTPError as error:
            found.append((type(error).__name__, time.perf_counter() - start))

    async with client_of(server, 2000) as client:
        start, tasks = time.perf_counter(), []
        while time.perf_counter() < start + seconds:
            await asyncio.sleep(max(0.0, start + len(tasks) / lr - time.perf_counter()))
            tasks.append(asyncio.create_task(one(client)))
        offered = len(tasks) * batch / (time.perf_counter() - start)
        await asyncio.gather(*tasks)
        ready = (await client.get("/v2/health/ready")).status_code
    by = {kind: [took for other, took in found if other == kind] for kind, _ in found}
    return {
        "offered_images_per_second": round(offered, 1),
        "times_capacity": round(offered / capacity, 1),
        "answers": {kind: {"count": len(times), **percentiles(times)} for kind, times in sorted(by.items())},
        "ready_afterwards": ready == 200,
    }


async def soak(server: Server, asks: dict[str, Ask], minutes: float) -> dict[str, Any]:
    """Eight clients for minutes, both kinds of requests; resident memory of the server and its workers."""
    sizes: list[tuple[float, float]] = []
    start, end = time.monotonic(), time.monotonic() + 60 * minutes
    statuses: Counter[int] = Counter()

    async def one(client: httpx.AsyncClient, number: int) -> None:
        turn, ask = number, list(asks.values())[number % len(asks)]
        while time.monotonic() < end:
            statuses[(await ask(client, turn)).status_code] += 1
            turn += 8

    async def callbacks() -> None:
        while time.monotonic() < end:
            sizes.append((time.monotonic() - start, resident(server.process.pid)))
            await asyncio.sleep(min(5.0, 6 * minutes))

    async with client_of(server, 8) as client:
        await asyncio.gather(callbacks(), *(one(client, number) for number in range(8)))
    settled = [size for at, size in sizes if at >= 0.1 * 60 * minutes]  # the first tenth fills caches and pools
    tenth = max(1, len(settled) // 10)
    first, last = statistics.mean(settled[:tenth]), statistics.mean(settled[-tenth:])
    return {
        "minutes": minutes,
        "requests": sum(statuses.values()),
        "statuses": {str(status): count for status, count in sorted(statuses.items())},
        "resident_mib": {"after_a_tenth": round(first, 1), "at_the_end": round(last, 1)},
        "growth": round(last / first - 1, 5),
    }


def resident(process: int) -> float:
    """MiB of a process and all below it; shared pages of the fork server's children count once for each."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        parents[int(status.parent.name)] = (int(fields[1]), int(fields[21]))
    family = {process}
    for _ in range(4):
        family |= {child for child, (parent, _) in parents.items() if parent in family}
    pages = sum(parents[member][1] for member in family if member in parents)
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def fuzz(server: Server, examples: int) -> dict[str, Any]:
    """Schemathesis over the OpenAPI document."""
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    words = [sys.executable, "-m", "schemathesis.cli", "config", f"{server.url}/openapi.json", "--checks", checks]
    words += ["--max-examples", str(examples), "--seed", "1", "--no-color"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd="/tmp")
    counted = re.search(r"(\d+) generated", done.stdout)
    return {"requests": int(counted[1]) if counted else 0, "passed": done.returncode == 0, "tail": done.stdout[-600:]}


async def measure(server: Server, bodies: list[bytes], wanted: argparse.Namespace) -> dict[str, Any]:
    asks = asking(server, bodies)
    load = {}
    for name, ask in asks.items():
        load[name] = [await closed_loop(server, ask, clients, wanted.seconds) for clients in wanted.clients]
        print(name, *load[name], sep="\n  ", flush=True)
    body, headers = tensor(server, 32)

    async def whole(client: httpx.AsyncClient, turn: int) -> httpx.Response:
        return await client.post("/v2/models/model/infer", content=body, headers=headers)

    full = await closed_loop(server, whole, 2, wanted.seconds)
    capacity = 32 * full["requests_per_second"]
    print(f"capacity: {capacity:.0f} images/s in requests of 32", flush=True)
    flooded = await overload(server, capacity, 32, wanted.seconds)
    print("overload", flooded, flush=True)
    soaked = await soak(server, asks, wanted.soak)
    print("soak", soaked, flush=True)
    return {"load": load, "capacity_images_per_second": capacity, "overload": flooded, "soak": soaked}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("images", type=Path)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each load")
    parser.add_argument("--soak", type=float, default=10.0, help="minutes")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--fuzz", type=int, default=200, help="examples for each operation")
    parser.add_argument("--backends", nargs="+", default=["torch", "onnx"])
    parser.add_argument(
        "--abuse", type=float, default=10.0, help="minutes at twice the capacity, one in twenty malformed"
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="the others keep their figures")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "serving.json")
    wanted = parser.parse_args()
    listing = list_images(wanted.images, "label")
    bodies = [(listing.root / entry.path).read_bytes() for entry in listing.entries[:64]]
    found = json.loads(wanted.out.read_text()) if wanted.out.is_file() and set(wanted.only) < set(PARTS) else {}
    for backend in wanted.backends:
        print(f"== {backend}", flush=True)
        flags, mine = ["--backend", backend], found.setdefault(backend, {})
        if "load" in wanted.only:
            with served(wanted.bundle, *flags) as server:
                mine |= asyncio.run(measure(server, bodies, wanted))
        if "openapi" in wanted.only:
            with served(wanted.bundle, *flags) as server:
                mine["openapi"] = fuzz(server, wanted.fuzz)
            print("openapi", mine["openapi"]["passed"], flush=True)
        if "abuse" in wanted.only:
            serve = partial(served, wanted.bundle)
            mine["abuse"] = abuse.run(serve, bodies, 60 * wanted.abuse, flags, resident)
            print("abuse", json.dumps(mine["abuse"], indent=1), flush=True)
    machine = {"cores": os.cpu_count(), "processor": platform.processor() or platform.machine()}
    result = {**found, "bundle": Path(wanted.bundle).name, "machine": machine}
    if "load" in wanted.only:
        result["seconds_of_a_load"] = wanted.seconds
    wanted.out.parent.mkdir(exist_ok=True)
    wanted.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
