"""What the real command line makes of a command, without running it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

import click
import typer.main

from taskgraft.cli import app

COMMANDS: Mapping[str, click.Command] = typer.main.get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]


def understood(line: str) -> str:
    """The verb of a command that the command line takes as it stands; raises what it raises for any other."""
    words = shlex.split(line)
    assert words[0] == "taskgraft", line
    verb, *rest = [word for place, word in enumerate(words) if place and not (place == 1 and word == "--debug")]
    COMMANDS[verb].make_context(verb, rest).close()
    return verb


def flags(verb: str) -> dict[str, bool]:
    """The flags of a command, and whether each takes a value."""
    return {
        name: not option.is_flag  # pyright: ignore[reportAttributeAccessIssue]
        for option in COMMANDS[verb].params
        if option.param_type_name == "option" and option.name != "help"
        for name in (*option.opts, *option.secondary_opts)
    }
