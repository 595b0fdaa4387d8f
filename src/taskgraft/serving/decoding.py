"""Images are decoded in processes of their own: one that hangs, crashes or eats memory is replaced.

The workers are started by a fork server that has imported everything before, so a new one is there within
milliseconds. They hear of nothing but bytes and answer with nothing but bytes; no pickle goes either way.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from taskgraft.data import decode
from taskgraft.data.transforms import Preprocessing
from taskgraft.errors import SetupError
from taskgraft.serving.limits import Limits, Refusal

GOOD, BAD = b"+", b"-"
SPARE = 512 * 2**20  # bytes of memory a worker may take beside its image
STARTING = 120.0  # seconds; the first worker waits for the fork server's imports
PER_PIXEL = 32  # bytes: a 16-bit image is widened to 64 bits for a moment


class Worker(NamedTuple):
    """One process and the way to it."""

    process: ForkServerProcess
    way: Connection


@dataclass(frozen=True)
class Decoders:
    """The pool: `idle` workers wait for an image; `replaced` counts those that had to go."""

    wanted: Preprocessing
    limits: Limits
    idle: asyncio.Queue[Worker]
    threads: ThreadPoolExecutor
    replaced: list[int]


def start(wanted: Preprocessing, limits: Limits) -> Decoders:
    """Start all workers and wait for them; raises TaskgraftError where they do not come up."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(["taskgraft.serving.decoding"])
    threads = ThreadPoolExecutor(2 * limits.workers, "decoding")  # twice: one may hang until its worker is killed
    pool = Decoders(wanted, limits, asyncio.Queue(), threads, [0])
    for _ in range(limits.workers):
        pool.idle.put_nowait(_hire(wanted, limits))
    return pool


async def decoded(pool: Decoders, found: bytes) -> NDArray[np.uint8]:
    """Pixels [S, S, 3] of one image in memory; raises Refusal 422 for what is none, or costs too much."""
    loop = asyncio.get_running_loop()
    try:
        worker = await asyncio.wait_for(pool.idle.get(), pool.limits.request_seconds)
    except TimeoutError:
        raise Refusal(503, "all decoding processes are busy", retry=5) from None
    try:
        answer = await asyncio.wait_for(
            loop.run_in_executor(pool.threads, _ask, worker, found), pool.limits.decode_seconds
        )
    except TimeoutError:
        await _replace(pool, worker)
        raise Refusal(422, f"decoding took more than {pool.limits.decode_seconds:g} s") from None
    except (EOFError, OSError):
        await _replace(pool, worker)
        raise Refusal(422, "decoding this image failed") from None
    except BaseException:  # the request was cancelled while the worker was busy: its answer must not meet another one
        await asyncio.shield(_replace(pool, worker))
        raise
    pool.idle.put_nowait(worker)
    if answer[:1] == BAD:
        raise Refusal(422, f"not a usable image: {answer[1:].decode('utf-8', 'replace')}")
    size = pool.wanted.size
    return np.frombuffer(answer, np.uint8, offset=1).reshape(size, size, 3)


def stop(pool: Decoders) -> None:
    """End all workers that are idle; the others end with this process, which closes their way."""
    while not pool.idle.empty():
        _dismiss(pool.idle.get_nowait())
    pool.threads.shutdown(wait=False, cancel_futures=True)


def _hire(wanted: Preprocessing, limits: Limits) -> Worker:
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, tuple(wanted), limits.max_pixels), daemon=True)
    process.start()
    theirs.close()
    worker = Worker(process, ours)
    try:
        if ours.poll(STARTING):  # else the first images would wait for imports, and run out of their time
            ours.recv_bytes()
            return worker
    except (EOFError, OSError):
        pass
    _dismiss(worker)
    raise SetupError(
        f"a decoding process did not start within {STARTING:g} s; free the machine or give fewer --workers"
    )


def _dismiss(worker: Worker) -> None:
    worker.process.kill()
    worker.process.join()
    worker.way.close()


async def _replace(pool: Decoders, worker: Worker) -> None:
    pool.replaced[0] += 1
    await asyncio.to_thread(_dismiss, worker)
    pool.idle.put_nowait(await asyncio.to_thread(_hire, pool.wanted, pool.limits))


def _ask(worker: Worker, found: bytes) -> bytes:
    worker.way.send_bytes(found)
    return worker.way.recv_bytes()


def _work(way: Connection, wanted: tuple[Any, ...], max_pixels: float) -> None:
    """A worker's life: bytes in, pixels or a reason out, until the way is closed."""
    import warnings

    warnings.simplefilter("ignore")  # Pillow warns of what the rules already decide
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server says when it is over
    most = int(max_pixels * 1e6)
    _confine(most * PER_PIXEL + SPARE)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what C libraries say of a stranger's image is no line of the log
    preprocessing = Preprocessing(*wanted)
    with contextlib.suppress(EOFError, OSError):
        way.send_bytes(GOOD)
        while True:
            picture = decode.decode_bytes(way.recv_bytes(), preprocessing, most)
            if picture.pixels is None:
                way.send_bytes(BAD + (picture.reason or "unknown").encode())
            else:
                way.send_bytes(GOOD + np.ascontiguousarray(picture.pixels).tobytes())


def _confine(spare: int) -> None:
    """Allow this process `spare` more bytes of memory, no files and no core dump; where the system can."""
    try:
        import resource
    except ImportError:
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    status = Path("/proc/self/statm")
    if status.exists():
        now = int(status.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + spare, now + spare))
