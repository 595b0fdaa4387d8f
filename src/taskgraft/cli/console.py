"""What a person sees: lines on stderr, a bar on a terminal, plain lines elsewhere, results on stdout."""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from taskgraft.cli.launch import leads

QUIET_FOR = 15.0  # seconds between plain progress lines where there is no terminal


@contextmanager
def importing() -> Iterator[None]:
    """Collect no garbage while modules are imported, and leave what they hold out of later collections.

    torch and timm make hundreds of thousands of objects that stay; looking at them again and again took a seventh of
    the time.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def watching(brief: bool = False) -> Iterator[Any]:
    """A `Watch` that prints to stderr: a bar on a terminal, a plain line now and then elsewhere.

    `brief` leaves one of the two: on a terminal the bar alone, elsewhere the lines that say what begins.
    """
    from taskgraft.types import Callbacks

    if not leads():
        yield Callbacks()
        return
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    if not console.is_terminal:
        yield Callbacks(info=note) if brief else Callbacks(info=note, progress=_plain())
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        callbacks = Callbacks(progress=_bars(bars))
        yield callbacks if brief else callbacks._replace(info=lambda line: bars.console.print(line))


def note(line: str) -> None:
    """A line on stderr, whatever becomes of it: a full disk or a reader that went away must not end a training."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - from now on, and until the end


def out(lines: list[str]) -> None:
    """Results: on stdout, for people and pipes."""
    if leads():
        print("\n".join(lines), flush=True)


def _plain() -> Callable[[str, int, int], None]:
    last = time.monotonic()
    begun: dict[str, tuple[float, int, int]] = {}  # when, at which step, and the latest one

    def progress(what: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        start, first, latest = begun.get(what, (now, done, done))
        if done < latest:  # another run of this kind
            start, first = now, done
        begun[what] = start, first, done
        if now - last >= QUIET_FOR:
            last = now
            note(f"{what}: {done} of {total}{_left(total - done, done - first, now - start)}")

    return progress


def _left(missing: int, done: int, seconds: float) -> str:
    """How long the rest will take, if it goes on as it went."""
    from taskgraft.report.formatting import format_duration

    return f", about {format_duration(missing * seconds / done)} left" if done > 0 and missing > 0 else ""


def _bars(bars: Progress) -> Callable[[str, int, int], None]:
    """One bar, whose description is what is being done; it begins anew where another amount of work begins."""
    shown: list[tuple[Any, int]] = []

    def progress(what: str, done: int, total: int) -> None:
        if shown and shown[-1][1] != total:
            bars.remove_task(shown.pop()[0])
        if not shown:
            shown.append((bars.add_task(what, total=total), total))
        bars.update(shown[-1][0], description=what, completed=done)
        if done >= total:
            bars.remove_task(shown.pop()[0])

    return progress
