"""A behavior as a row: what is promised, how it is tried, which tests show more of it; and how a command is run."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from taskgraft.cli import main

FEW = (
    "--steps",
    "2",
    "--head-steps",
    "2",
    "--batch-size",
    "8",
    "--eval-every",
    "1",
    "--precision",
    "fp32",
    "--cache",
    "none",
)


class Told(NamedTuple):
    """What a command said, and after how many seconds its first word came."""

    code: int
    out: str
    err: str
    first: float = 0.0

    @property
    def last(self) -> str:
        return self.err.rstrip().splitlines()[-1]


class Place(NamedTuple):
    """Where a row is tried: `root` is its own; parent, child, images and one real run are shared."""

    root: Path
    alice: Path
    plain: Path
    new: Path
    old: Path
    words: tuple[object, ...]  # the command of the real run
    both: Path  # what it left
    told: Told  # and what it said
    home: Path  # its HOME

    def run(self, *words: object) -> Told:
        return command(self.root, *words)

    def extend(self, *words: object, data: Path | None = None) -> Told:
        return self.run("extend", self.alice, data or self.new, self.root / "out", "--task", "paint", *FEW, *words)


class Behavior(NamedTuple):
    """A row of the table. `shown` names tests that show it, or the rest of it; `changed` says why it is not promised
    as the list has it.
    """

    number: int
    promise: str
    act: Callable[[Place], str] | None = None
    shown: tuple[str, ...] = ()
    changed: str = ""


def command(root: Path, *words: object) -> Told:
    """Run the real command line in this process, with a home of its own and streams as strict as a terminal's."""
    home = root / "home"
    home.mkdir(parents=True, exist_ok=True)
    streams = [io.TextIOWrapper(io.BytesIO(), "utf-8", errors) for errors in ("strict", "backslashreplace")]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(home).items():
            patch.setenv(name, value)
        patch.chdir(home)
        patch.setattr(sys, "argv", ["taskgraft", *map(str, words)])
        patch.setattr(sys, "stdout", streams[0])
        patch.setattr(sys, "stderr", streams[1])
        with pytest.raises(SystemExit) as end:
            main()
    texts = []
    for stream in streams:
        stream.flush()
        texts.append(stream.buffer.getvalue().decode("utf-8", "backslashreplace"))  # pyright: ignore
    code = end.value.code
    return Told(code if isinstance(code, int) else 0, texts[0], texts[1])


def started(home: Path, *words: object) -> Told:
    """Run it as a user does, in a process of its own; the clock runs from its start to the first line on stderr."""
    home.mkdir(parents=True, exist_ok=True)
    begun, first = time.monotonic(), 0.0
    lines = []
    process = subprocess.Popen(
        [sys.executable, "-m", "taskgraft.cli", *map(str, words)], cwd=home, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **environment(home)},
    )  # fmt: skip
    with process:
        assert process.stderr
        assert process.stdout
        for line in process.stderr:
            first = first or time.monotonic() - begun
            lines.append(line)
        out = process.stdout.read()
    return Told(process.returncode, out, "".join(lines), first)


def environment(home: Path) -> dict[str, str]:
    places = ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME")
    return {**dict.fromkeys(places, str(home)), "OMP_NUM_THREADS": "1"}
