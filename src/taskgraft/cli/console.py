"""Output: results on stdout, messages on stderr, a progress bar on a terminal and plain lines elsewhere."""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from taskgraft.cli.launch import is_main_process

if TYPE_CHECKING:
    from rich.progress import Progress

    from taskgraft.types import Callbacks

INTERVAL = 15.0  # seconds between plain progress lines


@contextmanager
def importing() -> Iterator[None]:
    """Pause garbage collection while torch and timm are imported, and exempt their objects from later collections.

    They create hundreds of thousands of permanent objects; rescanning them takes a seventh of the import.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def show_progress(brief: bool = False) -> Iterator[Callbacks]:
    """Provide callbacks that report on stderr; in a group of processes, only the main process reports.

    Args:
        brief: Report only the bar on a terminal, and only messages elsewhere.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from taskgraft.types import Callbacks

    if not is_main_process():
        yield Callbacks()
        return
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    if not console.is_terminal:
        plain = PlainProgress()
        callbacks = Callbacks(info=print_message, progress=plain, status=plain.show_status)
        yield Callbacks(info=print_message) if brief else callbacks
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[status]}", style="cyan"),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as progress:
        bar = BarProgress(progress)
        callbacks = Callbacks(progress=bar, status=bar.show_status)
        yield callbacks if brief else callbacks._replace(info=progress.console.print)


def print_message(line: str) -> None:
    """Print a line on stderr. A full disk or a closed pipe there must not end a training run."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the end of the process


def print_results(*lines: str) -> None:
    """Print lines on stdout, from the main process only."""
    if is_main_process():
        print("\n".join(lines), flush=True)


def print_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], best: int | None, *, plain: str, below: Sequence[str] = ()
) -> None:
    """Print a table: in colors on a terminal, as Markdown elsewhere.

    Args:
        head: Title of each column.
        rows: Cells of each row; the first is its name, the others are numbers.
        best: The row to highlight, if any.
        plain: What is printed where there is no terminal.
        below: Lines below the table, on a terminal.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, markup=False)
    if not console.is_terminal or not is_main_process():
        print_results(plain)
        return
    table = Table(header_style="bold cyan")
    for number, title in enumerate(head):
        table.add_column(Text(title), justify="right" if number else "left")
    for number, row in enumerate(rows):
        table.add_row(*map(Text, row), style="bold green" if number == best else None)
    console.print(table)
    print_results(*below)


def print_json(value: object) -> None:
    """Print JSON on stdout, indented."""
    print_results(json.dumps(value, indent=2, ensure_ascii=False))


class PlainProgress:
    """Progress as one line every `INTERVAL` seconds, with the time left at the average speed so far."""

    def __init__(self) -> None:
        self.last_line = time.monotonic()
        self.activities: dict[str, tuple[float, int, int]] = {}  # name -> start time, first step, latest step
        self.status = ""

    def __call__(self, what: str, done: int, total: int) -> None:
        """Report that `done` of `total` steps are done."""
        now = time.monotonic()
        start, first, latest = self.activities.get(what, (now, done, done))
        if done < latest:  # another run of the same kind
            start, first = now, done
        self.activities[what] = start, first, done
        if now - self.last_line < INTERVAL:
            return
        self.last_line = now
        remaining = ""
        if first < done < total:
            from taskgraft.report import formatting as fmt

            remaining = f", about {fmt.duration((total - done) * (now - start) / (done - first))} left"
        print_message(f"{what}: {done} of {total}{remaining}{self.status and f' ({self.status})'}")

    def show_status(self, text: str) -> None:
        """Add this to the following lines."""
        self.status = text


class BarProgress:
    """Progress as one bar, described by the current activity and restarted when the amount of work changes."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.total, self.status = 0, ""

    def __call__(self, what: str, done: int, total: int) -> None:
        """Report that `done` of `total` steps are done."""
        bars = self.progress.task_ids
        if bars and (self.total != total or done >= total):
            self.progress.remove_task(bars[0])
            bars = []
        if done >= total:
            return
        self.total = total
        bar = bars[0] if bars else self.progress.add_task(what, total=total, status=self.status)
        self.progress.update(bar, description=what, completed=done, status=self.status)

    def show_status(self, text: str) -> None:
        """Show this beside the bar."""
        self.status = text
        for bar in self.progress.task_ids:
            self.progress.update(bar, status=text)
