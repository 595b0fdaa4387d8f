"""A bad input as a row: what it is, what is promised, what is run; and how a command is run and watched."""

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

SECONDS, WAIT = 5.0, 30.0  # of the processor, beyond the start of the program; and on a clock, on a busy machine
GROWTH = 300 * 2**20  # bytes of memory that a row may take beside what the program has anyway
TRAIN = (
    "--model", "test_resnet", "--preprocessing", "32 squash bilinear half", "--task", "paint",
    "--steps", "1", "--batch-size", "4", "--precision", "fp32", "--cache", "none",
)  # fmt: skip
EXTEND = (
    "--task",
    "paint",
    "--steps",
    "1",
    "--head-steps",
    "0",
    "--batch-size",
    "4",
    "--precision",
    "fp32",
    "--cache",
    "none",
)


class Place(NamedTuple):
    """Where a row is tried: all below `root`; `data` holds good images of two classes, `parent` is shared."""

    root: Path
    data: Path
    out: Path
    parent: Path


class Told(NamedTuple):
    """What a command, or the server, said: its exit code or status, both streams, seconds of
    the processor and of the clock, bytes it grew by.
    """

    code: int
    out: str
    err: str
    seconds: float
    wall: float
    grown: int


Look = Callable[[Place, Told], Any]


class Try(NamedTuple):
    """A command and what it must answer: one of `codes`, every one of `says`, none of `hides`; then `look` looks on."""

    words: Sequence[object]
    codes: tuple[int, ...] = (0,)
    says: tuple[str, ...] = ()
    hides: tuple[str, ...] = ()
    look: Look | None = None


class Post(NamedTuple):
    """A request to the running server, and what it must answer."""

    path: str
    body: bytes
    codes: tuple[int, ...] = (200,)
    says: tuple[str, ...] = ()
    hides: tuple[str, ...] = ()
    look: Look | None = None


class Case(NamedTuple):
    """A row of the table; `changed` says why what is promised here is not what the list wished."""

    number: int
    what: str
    promise: str
    make: Callable[[Place], Sequence[Try | Post]]
    changed: str = ""


def run(words: Sequence[object], place: Place, patch: pytest.MonkeyPatch) -> Told:
    """Run the real command line in this process, in an empty folder, with streams as strict as a terminal's."""
    home = place.root / "home"
    (home / "here").mkdir(parents=True, exist_ok=True)
    for name in ("HOME", "XDG_CACHE_HOME", "TMPDIR"):
        patch.setenv(name, str(home))
    patch.setattr(tempfile, "tempdir", str(home))
    patch.chdir(home / "here")
    patch.setattr(sys, "argv", ["taskgraft", *map(_word, words)])
    streams = [io.TextIOWrapper(io.BytesIO(), "utf-8", errors) for errors in ("strict", "backslashreplace")]
    patch.setattr(sys, "stdout", streams[0])
    patch.setattr(sys, "stderr", streams[1])
    before, start, clock = _peak(), time.process_time(), time.monotonic()
    with pytest.raises(SystemExit) as end:
        main()
    seconds, wall, grown = time.process_time() - start, time.monotonic() - clock, _peak() - before
    patch.undo()
    texts = []
    for stream in streams:
        stream.flush()
        texts.append(stream.buffer.getvalue().decode("utf-8", "backslashreplace"))  # pyright: ignore
    code = end.value.code
    return Told(code if isinstance(code, int) else 0, texts[0], texts[1], seconds, wall, grown)


def judge(case: Case, tried: Try | Post, told: Told, place: Place) -> str:
    """Assert that a promise was kept; returns what happened in a few words."""
    what = f"{case.number}: {_named(tried)}"
    everything = told.out + told.err
    assert told.code in tried.codes, f"{what}: {told.code}\n{everything[-3000:]}"
    assert "Traceback" not in everything, f"{what}\n{everything[-3000:]}"
    assert told.seconds < SECONDS, f"{what}: {told.seconds:.1f} s"
    assert told.wall < WAIT, f"{what}: {told.wall:.1f} s"
    assert told.grown < GROWTH, f"{what}: {told.grown / 2**20:.0f} MiB more"
    if isinstance(tried, Try) and told.code in (2, 3, 4):
        last = told.err.rstrip().splitlines()[-1]
        assert last.startswith("taskgraft: "), f"{what}: {last}"
        assert "--debug" not in last, f"{what}: {last}"
    for part in tried.says:
        assert part in everything, f"{what}: {part!r} is not in\n{everything[-3000:]}"
    for part in tried.hides:
        assert part not in everything, f"{what}: {part!r}"
    found = tried.look(place, told) if tried.look else None
    gist = (_gist(told) if found is None else str(found)).replace(str(place.root), "…")
    return f"{_named(tried)}: {told.code} {gist[:140]}".strip()


def snapshot(root: Path, out: Path) -> dict[str, tuple[Any, ...]]:
    """What lies below a folder, OUT apart: kinds, rights, links and digests."""
    found: dict[str, tuple[Any, ...]] = {}
    for folder, folders, files in os.walk(root):
        here = Path(folder)
        if here == out:
            folders.clear()
            continue
        for name in (*folders, *files):
            path = here / name
            if path == out or (here == root and name == "home"):
                continue
            info = os.lstat(path)
            kept: object = None
            if stat.S_ISLNK(info.st_mode):
                kept = os.readlink(path)
            elif stat.S_ISREG(info.st_mode):
                kept = hashlib.sha256(path.read_bytes()).hexdigest()
            found[os.fspath(path)] = (info.st_mode, kept)
    return found


def left_at_home(place: Place) -> list[str]:
    """Files that a command left in HOME, the cache, the temporary folder or where it was called."""
    home = place.root / "home"
    return sorted(str(path.relative_to(home)) for path in home.rglob("*") if not path.is_dir())


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _word(word: object) -> str:
    return os.fsdecode(word) if isinstance(word, bytes) else str(word)


def _named(tried: Try | Post) -> str:
    return f"POST {tried.path[:40].split(' HTTP')[0]}" if isinstance(tried, Post) else str(tried.words[0])


def _gist(told: Told) -> str:
    """The one line that tells most."""
    lines = [line.strip() for line in (told.err or told.out).splitlines() if line.strip()]
    text = lines[-1] if told.code and lines and told.code != 200 else ""
    return text.removeprefix("taskgraft: ")
