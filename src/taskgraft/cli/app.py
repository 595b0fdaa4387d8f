"""The application: its commands, and how an error becomes one line and an exit code."""

from __future__ import annotations

import io
import signal
import sys
from typing import Annotated

import typer

from taskgraft import __version__
from taskgraft.cli import hosting, inspecting, launch, searching, training, using
from taskgraft.problem import Problem

STOPPED, TERMINATED = 130, 143  # exit codes after SIGINT and SIGTERM, as shells have them

app = typer.Typer(
    name="taskgraft",
    help="Teach a trained image classifier a new task without the old data, and without losing the old one.",
    epilog="Start with: taskgraft demo",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


def _version(value: bool) -> None:
    if value:
        print(f"taskgraft {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="show the traceback of an error")] = False,
) -> None:
    """Teach a trained image classifier a new task without the old data, and without losing the old one."""


training.register(app)
searching.register(app)
inspecting.register(app)
using.register(app)
hosting.register(app)


class _Terminated(BaseException):
    """SIGTERM, on its way up like the KeyboardInterrupt of SIGINT: what is open is closed and what runs is ended."""


def _terminated(number: int, frame: object) -> None:
    raise _Terminated


def _farewell() -> None:
    """Say how to go on; a second signal, sent by somebody in a hurry, changes nothing now."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if not launch.leads():
        return
    again = "" if {"tune", "compare", "demo", "auto"} & set(sys.argv) else " with --resume"
    print(f"taskgraft: stopped; the same command{again} goes on", file=sys.stderr)


def main() -> None:
    """Run the command line; every error a user can mend is one line on stderr and an exit code."""
    debug = "--debug" in sys.argv
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names that the terminal cannot show are escaped
    signal.signal(signal.SIGTERM, _terminated)
    try:
        app(standalone_mode=True)
    except Problem as problem:
        if debug:
            raise
        print(f"taskgraft: {problem}", file=sys.stderr)
        sys.exit(launch.settle(problem.code))
    except SystemExit as end:
        if end.code == STOPPED:  # typer has turned the interruption into this
            _farewell()
        raise
    except _Terminated:
        if not launch.inside():  # there the launcher ends its processes, perhaps to start them again
            _farewell()
        sys.exit(TERMINATED)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except Exception as error:
        if debug:
            raise
        print(f"taskgraft: {launch.explained(error)} (taskgraft --debug … shows where)", file=sys.stderr)
        sys.exit(1)
