"""What the command line makes of a command, without running it."""

from __future__ import annotations

import inspect
import shlex
from dataclasses import is_dataclass
from functools import cache
from typing import Any

from cyclopts import App
from cyclopts.argument import ArgumentCollection

from taskgraft.cli import app

COMMANDS: dict[str, App] = {name: app[name] for name in app if not name.startswith("-")}


def arguments_of(verb: str) -> ArgumentCollection:
    """The arguments and flags of a command, with their help."""
    return COMMANDS[verb].assemble_argument_collection(default_parameter=app.default_parameter, parse_docstring=True)


def parse(words: list[str]) -> inspect.BoundArguments:
    """Parse a command; raises what the command line raises."""
    _, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False, verbose=False)
    return bound


@cache
def parse_line(line: str) -> str:
    """Parse a whole command line and return its verb; raises what the command line raises."""
    words = shlex.split(line)
    assert words[0] == "taskgraft", line
    words = [word for word in words[1:] if word != "--debug"]
    parse(words)
    return words[0]


@cache
def flags_of(verb: str) -> dict[str, bool]:
    """The flags of a command, and whether each takes a value."""
    return {
        name: not argument.is_flag()
        for argument in arguments_of(verb)
        for name in argument.names
        if name.startswith("--")
    }


def values_of(bound: inspect.BoundArguments) -> dict[str, Any]:
    """The values of all arguments by their Python names, those inside dataclasses included."""
    bound.apply_defaults()
    result: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        result |= vars(value) if is_dataclass(value) else {name: value}
    return result
