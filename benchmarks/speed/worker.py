"""A process that keeps rivals ready and gives each its turn; the runner speaks to it in lines of JSON.

Each house has a process of its own, so that no rival runs under another's allocator, threads or patches; while one
has its turn, the others wait for a line and cost nothing.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TextIO

ROOT = Path(__file__).parents[2]
PATIENCE = 240.0  # seconds for one answer: the slowest turn takes a tenth of it


class Work(NamedTuple):
    """What one call did: so many images, in `seconds` where the rival knows better than its caller."""

    images: int
    seconds: float | None = None


class Ready(NamedTuple):
    """A rival at the start: `call` does a unit of work; the note says what it chose for itself, `chose` in numbers."""

    call: Callable[[], Work]
    note: str = ""
    chose: Mapping[str, float] = MappingProxyType({})


class House(NamedTuple):
    """A process for rivals: whose Python it runs, and what the environment says."""

    name: str
    python: str = sys.executable
    env: tuple[tuple[str, str], ...] = ()


class Worker(NamedTuple):
    """A running house; without a process everything happens in this one (toy sizes, tests)."""

    house: House
    process: subprocess.Popen[str] | None
    answers: queue.Queue[str]
    shelf: dict[str, Ready]


class Refused(Exception):
    """A rival cannot be prepared, failed in its turn, or its process died; the reason in one line."""


def start(house: House, here: bool = False) -> Worker:
    """Start a house; `here` keeps it in this process, which saves the imports and makes its figures worthless."""
    if here:
        return Worker(house, None, queue.Queue(), {})
    process = subprocess.Popen(
        [house.python, "-m", "benchmarks.speed.worker"],
        cwd=ROOT, env={**os.environ, **dict(house.env)}, text=True, bufsize=1,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    answers: queue.Queue[str] = queue.Queue()
    assert process.stdout is not None
    threading.Thread(target=_collect, args=(process.stdout, answers), daemon=True).start()
    return Worker(house, process, answers, {})


def ask(worker: Worker, patience: float = PATIENCE, **message: Any) -> dict[str, Any]:
    """Send one message and wait for its answer. Raises Refused with the reason where there is none."""
    if worker.process is None:
        answer = _handle(message, worker.shelf)
    else:
        assert worker.process.stdin is not None
        try:
            worker.process.stdin.write(json.dumps(message) + "\n")
            answer = json.loads(worker.answers.get(timeout=patience))
        except queue.Empty as error:
            worker.process.kill()
            raise Refused(f"no answer within {patience:.0f} s") from error
        except (BrokenPipeError, ValueError) as error:
            raise Refused(f"the process ended ({worker.process.poll()})") from error
    if "error" in answer:
        raise Refused(answer["error"])
    return answer


def stop(worker: Worker) -> None:
    """End a house."""
    if worker.process:
        worker.process.kill()
        worker.process.wait()
    worker.shelf.clear()


def found(place: str) -> Callable[..., Any]:
    """The function that "module:name" names, below benchmarks.speed."""
    module, name = place.split(":")
    return getattr(importlib.import_module(f"benchmarks.speed.{module}"), name)


def _collect(stream: TextIO, answers: queue.Queue[str]) -> None:
    for line in stream:
        answers.put(line)
    answers.put("")  # the end: no JSON, so whoever waits hears of it


def _handle(message: dict[str, Any], shelf: dict[str, Ready]) -> dict[str, Any]:
    """prepare a rival, give one its turn, clear the shelf, or call a function once."""
    try:
        if message["do"] == "prepare":
            shelf[message["key"]] = ready = found(message["maker"])(message["case"])
            return {"note": ready.note, "chose": dict(ready.chose)}
        if message["do"] == "turn":
            return _turn(shelf[message["key"]].call, message["calls"])
        if message["do"] == "clear":
            shelf.clear()
            gc.collect()
            return {}
        return {"value": found(message["function"])(message["case"])}
    except Exception as error:  # whatever a peer raises is the reason why it has no figure
        text = " ".join(str(error).split())
        return {"error": f"{type(error).__name__}: {text[:160]}"}


def _turn(call: Callable[[], Work], calls: int) -> dict[str, Any]:
    images, own = 0, 0.0
    begin = time.perf_counter()
    for _ in range(calls):
        work = call()
        images += work.images
        own += work.seconds or 0.0
    return {"images": images, "seconds": own or time.perf_counter() - begin}


def main() -> None:
    """Answer lines on stdin; what rivals print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    shelf: dict[str, Ready] = {}
    for line in sys.stdin:
        answers.write(json.dumps(_handle(json.loads(line), shelf)) + "\n")


if __name__ == "__main__":
    main()
