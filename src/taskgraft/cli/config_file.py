"""Settings from a TOML file: `--config FILE` reads one, `taskgraft config` writes, checks, shows and describes one.

A flag wins over the file, the file over the default. No variable of the environment decides a run, since the command
in its record would not show it.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import json
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from taskgraft.cli import console
from taskgraft.cli.options import kind_of, signed
from taskgraft.config import TRAIN_DEFAULTS, TrainingConfig, options, validate
from taskgraft.errors import InputError
from taskgraft.tuning.search_config import SearchConfig, WorkerConfig

COMMANDS = ("train", "extend", "compare", "tune")
NEVER = ("help", "config", "resume")  # flags that belong to a call, not to a run
HEAD = """\
# taskgraft {name} … --config FILE
# Each key is a flag without its dashes. A flag on the command line wins over this file, this file over the default.
# Paths are seen from where the command is run. Take the # away from what you set.
"""
SETTINGS = {
    name for kind in (TrainingConfig, SearchConfig, WorkerConfig) for name in options(kind)
}  # their flags tell the default in the help
TYPES = {int: "integer", float: "number", bool: "boolean"}


def fill(ctx: typer.Context, value: Path | None) -> Path | None:
    """Let a file's values be the defaults of the flags that are not given; raises TaskgraftError for what is no setting."""
    if value is not None:
        ctx.default_map = read(value, ctx.info_name or "", ctx.command.params)
    return value


Config = Annotated[
    Path | None,
    typer.Option(
        "--config", is_eager=True, callback=fill, rich_help_panel="Output",
        help="TOML file of flags; `taskgraft config COMMAND` writes one to fill in",
    ),
]  # fmt: skip


def with_config(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command --config."""
    own = list(inspect.signature(command, eval_str=True).parameters.values())
    flag = inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Config)

    @functools.wraps(command)
    def wrapper(config: Path | None = None, **given: Any) -> None:
        command(**given)

    return signed(wrapper, [*own, flag])


def read(file: Path, name: str, params: list[Any]) -> dict[str, Any]:
    """A file's values by the names of the parameters of the command `name`; raises TaskgraftError naming the file."""
    try:
        found = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"--config {file} is no readable TOML file: {error}; mend it there") from error
    known = _known(params)
    values: dict[str, Any] = {}
    for key, value in found.items():
        param = known.get(key.replace("_", "-"))
        if param is None:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise InputError(
                f"--config {file}: {key!r} is no setting of {name}; {hint}taskgraft config {name} lists them"
            )
        values[param.name] = [value] if param.multiple and isinstance(value, str) else value
    return values


def config(
    ctx: typer.Context,
    command: Annotated[str, typer.Argument(help=f"command that the file is for: {', '.join(COMMANDS)}")],
    file: Annotated[
        Path | None, typer.Argument(help="a file to check: every setting is shown with where it comes from")
    ] = None,
    schema: Annotated[bool, typer.Option("--schema", help="describe the file as JSON Schema, for editors")] = False,
) -> None:
    """Write a file for --config, with every setting, its meaning and its default; with FILE, check that one instead."""
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise InputError(f"{command!r} takes no file of settings; {hint}these do: {', '.join(COMMANDS)}")
    assert ctx.parent
    own: Any = ctx.parent.command.commands[command]  # pyright: ignore[reportAttributeAccessIssue]
    if schema:
        console.out([json.dumps(_schema(command, own), indent=2)])
    elif file is None:
        console.out([HEAD.format(name=command), *_template(own)])
    else:
        console.out(_shown(command, own, file, ctx.parent))


def _known(params: list[Any]) -> dict[str, Any]:
    """What a file may hold: flag without its dashes -> parameter."""
    flags = [param for param in params if param.param_type_name == "option" and param.name not in NEVER]
    return {param.opts[0].removeprefix("--"): param for param in flags}


def _default(param: Any) -> str:
    """A parameter's default as TOML, "" where it has none; flags made of settings tell it in their help."""
    told = re.search(r"\[default: (.+)\]$", param.help or "")
    value: Any = param.default
    if told and param.name in SETTINGS and value is None:
        plain = re.fullmatch(r"-?[\d.]+(e-?\d+)?|True|False", told[1])
        return told[1].lower() if plain else json.dumps(told[1])
    if value is None:
        return "[]" if param.multiple else ""
    return "" if callable(value) else _toml(value)


def _toml(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return repr(value) if isinstance(value, int | float) and not isinstance(value, bool) else _quoted(value)


def _quoted(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else json.dumps(str(value), ensure_ascii=False)


def _template(command: Any) -> list[str]:
    lines: list[str] = []
    known = _known(command.params)
    for panel in dict.fromkeys(_panel(param) for param in known.values()):
        lines += [f"# ---- {panel}", ""]
        for key, param in known.items():
            if _panel(param) == panel and not param.hidden:
                meaning = re.sub(r" \[default: .*\]$", "", param.help or "")
                lines += [f"# {meaning}", f"# {key} = {_default(param) or _quoted('')}", ""]
    return lines[:-1]


def _panel(param: Any) -> str:
    return param.rich_help_panel or "Options"


def _shown(name: str, command: Any, file: Path, parent: Any) -> list[str]:
    """Every setting with its source, as lines that are TOML again; raises TaskgraftError for a value that is not legal."""
    found = read(file, name, command.params)
    needed = [
        word
        for param in command.params
        if param.required and param.name not in found
        for word in (["-"] if param.param_type_name == "argument" else [param.opts[0], "-"])
    ]
    with command.make_context(name, [*needed, "--config", str(file)], parent=parent) as ctx:
        values: Mapping[str, Any] = ctx.params
        own = {field.name: values[field.name] for field in fields(TrainingConfig) if values[field.name] is not None}
        validate(replace(TRAIN_DEFAULTS if name == "train" else TrainingConfig(), **own))
        lines = []
        for key, param in _known(command.params).items():
            value = _toml(values[param.name]) if param.name in found else _default(param)
            source = "file" if param.name in found else "default"
            lines.append(f"{key} = {value}  # {source}" if value else f"# {key}: not given")
    return lines


def _schema(name: str, command: Any) -> dict[str, Any]:
    """The file's keys as JSON Schema, with the values that are legal."""
    declared = inspect.signature(command.callback, eval_str=True).parameters
    runs = options(TrainingConfig)
    found = {}
    for key, param in _known(command.params).items():
        kind = kind_of(declared[param.name].annotation)
        entry: dict[str, Any] = {"description": param.help or ""}
        if get_origin(kind) is list:
            entry |= {"type": "array", "items": {"type": "string"}}
        else:
            entry["type"] = TYPES.get(kind, "string")
        option = runs.get(param.name)
        if option and get_origin(option.kind) is Literal:
            entry["enum"] = list(get_args(option.kind))
        elif option and option.extent:
            least = option.extent.low if option.extent.at_least is None else option.extent.at_least
            above = option.extent.above
            entry |= {"minimum": least} if above is None else {"exclusiveMinimum": above}
            entry |= {} if option.extent.at_most is None else {"maximum": option.extent.at_most}
        found[key] = entry
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema", "title": f"taskgraft {name}",
        "type": "object", "properties": found, "additionalProperties": False,
    }  # fmt: skip
