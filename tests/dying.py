"""A piece of work in a child process that dies, or that the disk refuses, at its n-th touch of a folder."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

TOUCHES = {
    "open",
    "os.rename",
    "os.link",
    "os.remove",
    "os.rmdir",
    "os.mkdir",
    "os.chmod",
    "os.truncate",
    "shutil.rmtree",
}
KILLED, OTHER = 9, 77
REFUSALS = {
    "full": errno.ENOSPC, "failing": errno.EIO, "read-only": errno.EROFS, "stale": errno.ESTALE,
    "out of handles": errno.EMFILE,
}  # fmt: skip


class Child(NamedTuple):
    """A child process and the pipe through which it says what ended it."""

    pid: int
    way: int


def begin(work: Callable[[], Any]) -> Child:
    """Do the work in a fork of this process, so that nothing has to be imported again."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return Child(pid, reading)
    code = 0
    try:
        work()
    except BaseException as error:
        os.write(writing, f"{type(error).__name__}: {error}".encode())
        code = OTHER
    os._exit(code)


def end(child: Child) -> tuple[int, str]:
    """Wait for a child: its exit code, OTHER for an exception, -N for signal N; and what the exception said."""
    said = b"".join(iter(lambda: os.read(child.way, 65536), b"")).decode()
    os.close(child.way)
    return os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1]), said


def touches(folder: Path, work: Callable[[], Any]) -> int:
    """How many touches of `folder` there are in work that nothing disturbs."""
    count, note = [0], folder.with_name(f"{folder.name}.touches")

    def counted() -> None:
        callbacks(folder, count, lambda: None)
        work()
        note.write_text(str(count[0]))

    code, said = end(begin(counted))
    assert code == 0, said
    return int(note.read_text())


def disturbed(folder: Path, at: int, how: str, work: Callable[[], Any]) -> tuple[int, str]:
    """Do the work in a process that is "killed" at touch `at`, or that the disk refuses from then on, as `how` says.

    Returns the exit code, OTHER for an exception, and what the exception said.
    """
    count = [0]

    def fault() -> None:
        if how == "killed" and count[0] == at:
            os._exit(KILLED)
        if how != "killed" and count[0] >= at:
            raise OSError(REFUSALS[how], os.strerror(REFUSALS[how]))

    def doomed() -> None:
        callbacks(folder, count, fault)
        work()

    return end(begin(doomed))


def callbacks(folder: Path, count: list[int], fault: Callable[[], None]) -> None:
    """An audit hook: Python tells it of every file before it is opened for writing, renamed or removed."""
    home = str(folder)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event not in TOUCHES or not str(args[0]).startswith(home):
            return
        if event == "open" and not _writes(args):
            return
        count[0] += 1
        fault()

    sys.addaudithook(hook)


def _writes(args: tuple[Any, ...]) -> bool:
    mode, flags = args[1], args[2]
    return any(letter in (mode or "") for letter in "wax+") or bool((flags or 0) & (os.O_WRONLY | os.O_RDWR))
