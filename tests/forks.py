"""Work, and the command line, in a fork of this process, where all that it imports is imported already."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from multiprocessing import forkserver
from pathlib import Path
from typing import IO, Any, NamedTuple

from taskgraft.cli import main

RAISED = 77  # exit code of work that ended with an exception


class Fork(NamedTuple):
    """A child process, and the pipe through which it reports an exception."""

    pid: int
    pipe: int

    def wait(self) -> tuple[int, str]:
        """Return its exit code (RAISED after an exception, -N for signal N) and the exception's type and message."""
        message = b"".join(iter(lambda: os.read(self.pipe, 65536), b"")).decode()
        os.close(self.pipe)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]), message

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self.wait()


def fork(work: Callable[[], Any]) -> Fork:
    """Start `work` in a child process."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return Fork(pid, reading)
    code = 0
    try:
        work()
    except BaseException as error:
        os.write(writing, f"{type(error).__name__}: {error}".encode())
        code = RAISED
    os._exit(code)


def run(work: Callable[[], Any]) -> None:
    """Do `work` in a child process; it must succeed."""
    code, message = fork(work).wait()
    assert code == 0, message


class CliProcess:
    """The command line in a child process, with a few of `Popen`'s methods."""

    def __init__(self, args: list[str], fork: Fork, stdout: IO[bytes], stderr: IO[bytes]) -> None:
        self.args, self.pid, self.returncode = args, fork.pid, None
        self._fork, self._stdout, self._stderr = fork, stdout, stderr

    @property
    def stdout(self) -> str:
        """What it has written until now."""
        return _read(self._stdout)

    @property
    def stderr(self) -> str:
        return _read(self._stderr)

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def is_running(self) -> bool:
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def wait(self) -> subprocess.CompletedProcess[str]:
        """Wait for its end; what it printed and its exit code."""
        code, message = self._fork.wait()
        assert code != RAISED, message
        done = subprocess.CompletedProcess(self.args, code, self.stdout, self.stderr)
        self._stdout.close()
        self._stderr.close()
        return done


def start_cli(
    *args: object,
    before: Callable[[], Any] = lambda: None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    new_session: bool = False,
) -> CliProcess:
    """Start `taskgraft ARGS` in a child process.

    Args:
        args: Words of the command, without the program's name.
        before: Called in the child first, to change its surroundings.
        cwd: Its working directory.
        env: Environment variables to add.
        new_session: Whether it leads a process group, which can be killed as a whole.

    Returns:
        The running process.
    """
    words = [os.fspath(arg) if isinstance(arg, Path) else str(arg) for arg in args]
    stdout, stderr = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 closed in `wait`

    def work() -> None:
        if new_session:
            os.setsid()
        os.dup2(stdout.fileno(), 1)
        os.dup2(stderr.fileno(), 2)
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False, buffering=1, errors="backslashreplace")
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
        signal.signal(signal.SIGINT, signal.default_int_handler)  # and in the background, where it is ignored
        sys.argv = ["taskgraft", *words]
        os.environ.update(env or {})
        os.chdir(cwd or ".")
        _forget_forkserver()
        before()
        try:
            main()
        except SystemExit as end:
            sys.stdout.flush()
            os._exit(end.code if isinstance(end.code, int) else 0)

    return CliProcess(words, fork(work), stdout, stderr)


def run_cli(*args: object, check: bool = False, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `taskgraft ARGS` in a child process to its end; takes the options of `start_cli`."""
    done = start_cli(*args, **options).wait()
    assert not check or done.returncode == 0, done.stderr
    return done


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    """The last line on stderr, which is what a person reads first, without the program's name."""
    return (done.stderr.rstrip().splitlines() or [""])[-1].removeprefix("taskgraft: ")


def _forget_forkserver() -> None:
    """A fork starts a fork server of its own instead of using its parent's."""
    state = vars(forkserver._forkserver)  # pyright: ignore[reportAttributeAccessIssue]
    state.update(_forkserver_pid=None, _forkserver_address=None, _forkserver_alive_fd=None)


def _read(file: IO[bytes]) -> str:
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode(errors="replace")
