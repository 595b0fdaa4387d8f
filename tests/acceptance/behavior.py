"""A promised behavior as a row of the table, with its check; and how a command is run."""

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

FEW_STEPS = (
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


class Output(NamedTuple):
    """What a command printed, and after how many seconds its first line came."""

    code: int
    stdout: str
    stderr: str
    seconds_to_first_line: float = 0.0

    @property
    def last_line(self) -> str:
        return self.stderr.rstrip().splitlines()[-1]


class Workspace(NamedTuple):
    """Where a row is checked: `tmp_path` is its own; parent, child, images and one real run are shared."""

    tmp_path: Path
    parent: Path
    child: Path
    images: Path
    old_images: Path
    command: tuple[object, ...]  # the command of the real run
    out: Path  # its folder
    output: Output
    home: Path  # its HOME

    def run(self, *args: object) -> Output:
        return run_here(self.tmp_path / "home", *args)

    def extend(self, *flags: object, data: Path | None = None) -> Output:
        out = self.tmp_path / "out"
        return self.run("extend", self.parent, data or self.images, out, "--task", "paint", *FEW_STEPS, *flags)


class Behavior(NamedTuple):
    """A row of the table. `tests` names tests that check it, or the rest of it; `note` explains deviations."""

    number: int
    promise: str
    check: Callable[[Workspace], str] | None = None
    tests: tuple[str, ...] = ()
    note: str = ""


def run_here(home: Path, *args: object) -> Output:
    """Run the command line in this process, with a home of its own and streams as strict as a terminal's."""
    home.mkdir(parents=True, exist_ok=True)
    stdout, stderr = io.BytesIO(), io.BytesIO()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(home).items():
            patch.setenv(name, value)
        patch.chdir(home)
        patch.setattr(sys, "argv", ["taskgraft", *map(str, args)])
        patch.setattr(sys, "stdout", io.TextIOWrapper(stdout, "utf-8", "strict", write_through=True))
        patch.setattr(sys, "stderr", io.TextIOWrapper(stderr, "utf-8", "backslashreplace", write_through=True))
        with pytest.raises(SystemExit) as end:
            main()
        code = end.value.code if isinstance(end.value.code, int) else 0
        return Output(code, _decode(stdout), _decode(stderr))  # before the streams are closed with their wrappers


def _decode(stream: io.BytesIO) -> str:
    return stream.getvalue().decode("utf-8", "backslashreplace")


def run_process(home: Path, *args: object) -> Output:
    """Run it as a user does, in a process of its own; the clock runs from its start to the first line on stderr."""
    home.mkdir(parents=True, exist_ok=True)
    start, seconds, lines = time.monotonic(), 0.0, []
    process = subprocess.Popen(
        [sys.executable, "-m", "taskgraft.cli", *map(str, args)], cwd=home, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **environment(home)},
    )  # fmt: skip
    with process:
        assert process.stderr
        assert process.stdout
        for line in process.stderr:
            seconds = seconds or time.monotonic() - start
            lines.append(line)
        stdout = process.stdout.read()
    return Output(process.returncode, stdout, "".join(lines), seconds)


def environment(home: Path) -> dict[str, str]:
    names = ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME")
    return {**dict.fromkeys(names, str(home)), "OMP_NUM_THREADS": "1"}
