"""The reference of the command line, read from the application itself."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any, get_args, get_origin

import typer.main

from taskgraft.cli import app

KINDS: dict[Any, str] = {str: "text", int: "whole number", float: "number", Path: "path"}


def page() -> str:
    """Each command: what it does, its usage, its arguments and flags by panel, its example."""
    commands = typer.main.get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]
    return "\n".join(line for name, command in commands.items() for line in _command(name, command))


def _command(name: str, command: Any) -> list[str]:
    words = [p.name.upper() if p.required else f"[{p.name.upper()}]" for p in command.params if _argument(p)]
    lines = [f"## {name}", "", command.help or "", "", f"    taskgraft {name} {' '.join(words)} [flags]", ""]
    shown = sorted((p for p in command.params if not getattr(p, "hidden", False)), key=_panel)
    for panel, params in groupby(shown, _panel):
        lines += [f"**{panel}**", "", "| name | value | meaning |", "|---|---|---|", *(_row(p) for p in params), ""]
    return [*lines, _cell(command.epilog or ""), ""]


def _argument(param: Any) -> bool:
    return param.param_type_name == "argument"


def _panel(param: Any) -> str:
    return "Arguments" if _argument(param) else getattr(param, "rich_help_panel", None) or "Options"


def _row(param: Any) -> str:
    names = param.name.upper() if _argument(param) else ", ".join(param.opts)
    kind = "" if getattr(param, "is_flag", False) else _kind(param.type_descriptor.annotation)
    default = param.default
    told = "" if default in (None, "", False, ()) or callable(default) else f" [default: {default}]"
    return f"| `{names}` | {_cell(kind)} | {_cell((param.help or '') + told)} |"


def _kind(annotation: Any) -> str:
    if get_origin(annotation) is list:
        return f"{_kind(get_args(annotation)[0])} …"
    return KINDS.get(annotation, "")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
