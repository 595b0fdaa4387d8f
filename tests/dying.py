"""A piece of work in a child process that dies, or finds the disk full, at its n-th touch of a folder."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

TOUCHES = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.truncate", "shutil.rmtree"}
KILLED, FULL, OTHER = 9, 28, 77


def touches(folder: Path, work: Callable[[], Any]) -> int:
    """How many touches of `folder` there are in work that nothing disturbs."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        count = [0]
        _watch(folder, count, lambda: None)
        work()
        os.write(writing, str(count[0]).encode())
        os._exit(0)
    os.close(writing)
    total = int(os.read(reading, 20) or b"0")
    os.close(reading)
    assert os.waitpid(pid, 0)[1] == 0
    return total


def disturbed(folder: Path, at: int, how: str, work: Callable[[], Any]) -> tuple[int, str]:
    """Do the work in a process that is "killed" at touch `at`, or in which the disk is "full" from then on.

    Returns the exit code, OTHER for an exception, and what the exception said.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        count, code = [0], 0

        def fault() -> None:
            if how == "killed" and count[0] == at:
                os._exit(KILLED)
            if how == "full" and count[0] >= at:
                raise OSError(errno.ENOSPC, "No space left on device")

        _watch(folder, count, fault)
        try:
            work()
        except BaseException as error:
            os.write(writing, f"{type(error).__name__}: {error}".encode())
            code = OTHER
        os._exit(code)
    os.close(writing)
    said = b"".join(iter(lambda: os.read(reading, 65536), b"")).decode()
    os.close(reading)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said


def _watch(folder: Path, count: list[int], fault: Callable[[], None]) -> None:
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
