"""The application: its commands, and how an error becomes one line and an exit code."""

from __future__ import annotations

import io
import re
import signal
import sys
from typing import Annotated, Any

import typer

from taskgraft.cli import console, hosting, inspecting, launch, searching, training, using
from taskgraft.errors import TaskgraftError
from taskgraft.version import __version__

STOPPED, TERMINATED = 130, 143  # exit codes after SIGINT and SIGTERM, as shells have them
USAGE = typer.BadParameter.__mro__[1]  # every wrong use of the command line; typer gives it no public name

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
    console.note(f"taskgraft: stopped; the same command {way_on(sys.argv[1:])}")


def way_on(words: list[str]) -> str:
    """What a stopped command does when it is given again."""
    verb = next((word for word in words if not word.startswith("-")), "")
    if verb in ("tune", "compare", "demo") or "auto" in words or "--method=auto" in words:
        return "goes on"
    kept = verb in ("train", "extend") or (verb == "predict" and any(word.startswith("--out") for word in words))
    return "with --resume goes on" if kept else "begins anew"


def _misused(error: Any) -> str:
    """A wrong use of the command line in a line: what, what was probably meant, where to look.

    Empty where only the command is missing: the help that was shown instead says it.
    """
    text = "".join(sign if sign.isprintable() else " " for sign in error.format_message())
    hint = r"\.? \(Possible options: (.*)\)$|\. Did you mean (.*)\?$"
    said = re.sub(hint, r"; did you mean \1\2?", " ".join(text.split()))
    said = re.sub(r"^(Missing argument) '(\w+)'", lambda found: f"{found[1]} {found[2].upper()}", said)
    place = error.ctx.command_path if error.ctx else "taskgraft"
    return f"{said[0].lower()}{said[1:].rstrip('.')} ({place} --help lists what there is)" if said else ""


def _run() -> Any:
    """The command's exit code; SIGTERM is an exception while it runs, and no longer.

    A signal later meets an interpreter that is ending, where an exception would be printed instead of raised.
    """
    signal.signal(signal.SIGTERM, _terminated)
    try:
        return app(prog_name="taskgraft", standalone_mode=False)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)


def main() -> None:
    """Run the command line; every error a user can mend is one line on stderr and an exit code."""
    debug = "--debug" in sys.argv
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names that the terminal cannot show are escaped
    try:
        code = _run()
    except TaskgraftError as error:
        if debug:
            raise
        console.note(f"taskgraft: {error}")
        sys.exit(launch.settle(error.exit_code))
    except _Terminated:
        if not launch.inside():  # there the launcher ends its processes, perhaps to start them again
            _farewell()
        sys.exit(TERMINATED)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except Exception as error:
        misused = isinstance(error, USAGE)
        if debug and not misused:
            raise
        said = _misused(error) if misused else f"{launch.explained(error)} (taskgraft --debug … shows where)"
        if said:
            console.note(f"taskgraft: {said}")
        sys.exit(2 if misused else 1)
    if code == STOPPED:  # typer has turned the interruption into this
        _farewell()
    sys.exit(code or 0)
