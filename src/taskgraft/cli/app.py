"""The application: its commands, and how an error becomes one line and an exit code."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from taskgraft import __version__
from taskgraft.cli import hosting, inspecting, searching, training, using
from taskgraft.problem import Problem

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


def main() -> None:
    """Run the command line; every error a user can mend is one line on stderr and an exit code."""
    debug = "--debug" in sys.argv
    try:
        app(standalone_mode=True)
    except Problem as problem:
        if debug:
            raise
        print(f"taskgraft: {problem}", file=sys.stderr)
        sys.exit(problem.code)
    except SystemExit as end:
        if end.code == 130:  # typer has turned the interruption into this
            again = "" if {"tune", "compare", "demo", "auto"} & set(sys.argv) else " with --resume"
            print(f"taskgraft: stopped; the same command{again} goes on", file=sys.stderr)
        raise
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except Exception as error:
        if debug:
            raise
        print(f"taskgraft: {type(error).__name__}: {error} (taskgraft --debug … shows where)", file=sys.stderr)
        sys.exit(1)
