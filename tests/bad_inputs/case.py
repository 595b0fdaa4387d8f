"""A bad input as a row of the table: its name, what is promised, what is run; and how a command is run and watched."""

from __future__ import annotations

import hashlib
import io
import os
import resource
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from taskgraft.cli import main

MAX_CPU_SECONDS, MAX_WALL_SECONDS = 5.0, 30.0  # beyond the imports; the latter on a busy machine
MAX_MEMORY_GROWTH = 300 * 2**20  # bytes
TRAIN = (
    "--model",
    "test_resnet",
    "--preprocessing",
    "32 squash bilinear half",
    "--task",
    "paint",
    "--steps",
    "1",
    "--batch-size",
    "4",
    "--precision",
    "fp32",
    "--cache",
    "none",
)
EXTEND = (
    "--task", "paint", "--steps", "1", "--head-steps", "0", "--batch-size", "4", "--precision", "fp32",
    "--cache", "none",
)  # fmt: skip


class Workspace(NamedTuple):
    """Where a row is tried: all below `tmp_path`; `data` holds good images of two classes, `parent` is shared."""

    tmp_path: Path
    data: Path
    out: Path
    parent: Path

    @property
    def home(self) -> Path:
        return self.tmp_path / "home"


class Output(NamedTuple):
    """What a command or the server answered, and what it took: `code` is an exit code or an HTTP status."""

    code: int
    stdout: str
    stderr: str
    cpu_seconds: float
    wall_seconds: float
    memory_growth: int


Check = Callable[[Workspace, Output], Any]


class Command(NamedTuple):
    """A command, and what must come of it: one of `codes`, all of `contains`, none of `excludes`, a passing `check`."""

    args: Sequence[object]
    codes: tuple[int, ...] = (0,)
    contains: tuple[str, ...] = ()
    excludes: tuple[str, ...] = ()
    check: Check | None = None

    @property
    def name(self) -> str:
        return str(self.args[0])


class Post(NamedTuple):
    """A request to the running server, and what it must answer."""

    path: str
    body: bytes
    codes: tuple[int, ...] = (200,)
    contains: tuple[str, ...] = ()
    excludes: tuple[str, ...] = ()
    check: Check | None = None

    @property
    def name(self) -> str:
        return f"POST {self.path[:40].split(' HTTP')[0]}"


class Case(NamedTuple):
    """A row of the table; `note` explains where less is promised than one would like."""

    number: int
    name: str
    promise: str
    prepare: Callable[[Workspace], Sequence[Command | Post]]
    note: str = ""


def run(args: Sequence[object], workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Output:
    """Run the command line in this process, in an empty folder, with streams as strict as a terminal's."""
    cwd = workspace.home / "cwd"
    cwd.mkdir(parents=True, exist_ok=True)
    for name in ("HOME", "XDG_CACHE_HOME", "TMPDIR"):
        monkeypatch.setenv(name, str(workspace.home))
    monkeypatch.setattr(tempfile, "tempdir", str(workspace.home))
    monkeypatch.chdir(cwd)
    words = [os.fsdecode(arg) if isinstance(arg, bytes) else str(arg) for arg in args]
    monkeypatch.setattr(sys, "argv", ["taskgraft", *words])
    stdout, stderr = io.BytesIO(), io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(stdout, "utf-8", "strict", write_through=True))
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(stderr, "utf-8", "backslashreplace", write_through=True))
    memory, cpu, wall = _peak_memory(), time.process_time(), time.monotonic()
    with pytest.raises(SystemExit) as end:
        main()
    cpu, wall, memory = time.process_time() - cpu, time.monotonic() - wall, _peak_memory() - memory
    texts = [stream.getvalue().decode("utf-8", "backslashreplace") for stream in (stdout, stderr)]
    monkeypatch.undo()
    return Output(end.value.code if isinstance(end.value.code, int) else 0, texts[0], texts[1], cpu, wall, memory)


def assert_promise(case: Case, attempt: Command | Post, output: Output, workspace: Workspace) -> str:
    """Assert that a promise was kept; returns what happened in a few words."""
    name = f"{case.number}: {attempt.name}"
    text = output.stdout + output.stderr
    assert output.code in attempt.codes, f"{name}: {output.code}\n{text[-3000:]}"
    assert "Traceback" not in text, f"{name}\n{text[-3000:]}"
    assert output.cpu_seconds < MAX_CPU_SECONDS, f"{name}: {output.cpu_seconds:.1f} s"
    assert output.wall_seconds < MAX_WALL_SECONDS, f"{name}: {output.wall_seconds:.1f} s"
    assert output.memory_growth < MAX_MEMORY_GROWTH, f"{name}: {output.memory_growth / 2**20:.0f} MiB more"
    if isinstance(attempt, Command) and output.code in (2, 3, 4):
        last = output.stderr.rstrip().splitlines()[-1]
        assert last.startswith("taskgraft: "), f"{name}: {last}"
        assert "--debug" not in last, f"{name}: {last}"
    for part in attempt.contains:
        assert part in text, f"{name}: {part!r} is not in\n{text[-3000:]}"
    for part in attempt.excludes:
        assert part not in text, f"{name}: {part!r}"
    result = attempt.check(workspace, output) if attempt.check else None
    summary = (_last_error(output) if result is None else str(result)).replace(str(workspace.tmp_path), "…")
    return f"{attempt.name}: {output.code} {summary[:140]}".strip()


def snapshot(root: Path, out: Path) -> dict[str, tuple[Any, ...]]:
    """What lies below a folder, except `out` and the home: modes, and the targets of links or digests of files."""
    result: dict[str, tuple[Any, ...]] = {}
    for folder, folders, files in os.walk(root):
        if Path(folder) == out:
            folders.clear()
            continue
        for name in (*folders, *files):
            path = Path(folder) / name
            if path in (out, root / "home"):
                continue
            info = os.lstat(path)
            content: object = None
            if stat.S_ISLNK(info.st_mode):
                content = os.readlink(path)
            elif stat.S_ISREG(info.st_mode):
                content = hashlib.sha256(path.read_bytes()).hexdigest()
            result[os.fspath(path)] = (info.st_mode, content)
    return result


def files_in_home(workspace: Workspace) -> list[str]:
    """Files that a command left in HOME, the cache, the temporary folder or where it was called."""
    return sorted(str(path.relative_to(workspace.home)) for path in workspace.home.rglob("*") if not path.is_dir())


def _peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _last_error(output: Output) -> str:
    lines = [line.strip() for line in (output.stderr or output.stdout).splitlines() if line.strip()]
    text = lines[-1] if output.code and lines and output.code != 200 else ""
    return text.removeprefix("taskgraft: ")
