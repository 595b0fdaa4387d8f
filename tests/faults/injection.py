"""Faults at the n-th write to a folder: the process dies, or the file system refuses this write and all later ones."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forks

WRITES = {
    "open", "os.rename", "os.link", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.truncate", "shutil.rmtree",
}  # fmt: skip
KILLED = 9  # exit code of a process that died at a write
ERRORS = {
    "full": errno.ENOSPC, "failing": errno.EIO, "read-only": errno.EROFS, "stale": errno.ESTALE,
    "out of handles": errno.EMFILE,
}  # fmt: skip


def count_writes(folder: Path, work: Callable[[], Any]) -> int:
    """How often undisturbed work writes to `folder`."""
    count_file = folder.with_name(f"{folder.name}.writes")

    def counted() -> None:
        writes: list[int] = []
        _on_write(folder, writes.append)
        work()
        count_file.write_text(str(len(writes)))

    forks.run(counted)
    return int(count_file.read_text())


def run_with_fault(folder: Path, at: int, kind: str, work: Callable[[], Any]) -> tuple[int, str]:
    """Do the work in a child process that is "killed" at write `at`, or whose writes fail from then on (see ERRORS).

    Returns:
        The exit code, `forks.RAISED` for an exception, and the exception's type and message.
    """

    def fault(number: int) -> None:
        if kind == "killed" and number == at:
            os._exit(KILLED)
        if kind != "killed" and number >= at:
            raise OSError(ERRORS[kind], os.strerror(ERRORS[kind]))

    def disturbed() -> None:
        _on_write(folder, fault)
        work()

    return forks.fork(disturbed).wait()


def _on_write(folder: Path, callback: Callable[[int], Any]) -> None:
    """Call `callback(n)` before the n-th file below `folder` is opened for writing, renamed or removed."""
    count = 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal count
        if event in WRITES and str(args[0]).startswith(str(folder)) and (event != "open" or _for_writing(*args[1:3])):
            count += 1
            callback(count)

    sys.addaudithook(hook)


def _for_writing(mode: str | None, flags: int | None) -> bool:
    return any(letter in (mode or "") for letter in "wax+") or bool((flags or 0) & (os.O_WRONLY | os.O_RDWR))
