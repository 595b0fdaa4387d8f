"""Settings files: `--config FILE` reads one; `taskgraft config` prints, checks and describes one.

A flag wins over the file, and the file over the default. Environment variables cannot change a run, because the
recorded command would not show them.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter
from cyclopts.argument import Argument, ArgumentCollection
from cyclopts.config import Dict

from taskgraft.cli import console
from taskgraft.cli.flags import PANELS
from taskgraft.config import TrainingConfig, options
from taskgraft.errors import InputError
from taskgraft.tuning.search_config import SearchConfig, WorkerConfig

Command = Literal["train", "extend", "compare", "tune"]
HEADER = """\
# taskgraft {command} ... --config FILE
# Keys are flags without their dashes. Flags on the command line override this file.
# Paths are relative to the directory where the command is run. Remove the # of what you set."""
DECLARED = {  # settings with legal values, by field name; other flags of the same name are strings
    name: option
    for settings in (TrainingConfig, SearchConfig, WorkerConfig)
    for name, option in options(settings).items()
}


def apply(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Read `--config` for the flags that the command line does not set; cyclopts calls it before it parses values."""
    argument = arguments.get("--config", None)
    if argument is not None and argument.tokens:
        fill(app, commands, arguments, Path(argument.tokens[-1].value))
    _check_length(arguments)
    for argument in arguments:
        for token in argument.tokens:
            if argument.hint is int and "." in token.value:  # cyclopts would round it
                raise InputError(f"{argument.name} {token.value}: give a whole number")


def _check_length(arguments: ArgumentCollection) -> None:
    """Raise InputError where both --steps and --epochs are set, even to the default of --steps."""
    steps, epochs = (arguments.get(name, None) for name in ("--steps", "--epochs"))
    if steps is None or epochs is None or not steps.tokens or not epochs.tokens:
        return
    if epochs.tokens[-1].value.strip("0.") != "":
        raise InputError("--steps and --epochs: give one of them")


def fill(app: App, commands: tuple[str, ...], arguments: ArgumentCollection, file: Path) -> None:
    """Set the arguments that have no value from a file.

    Raises:
        InputError: The file cannot be read, or holds something that is not a flag of the command.
    """
    values = _read_file(file)
    names = [name.removeprefix("--") for argument in _flags(arguments) for name in argument.names]
    for key in values:
        if key.replace("_", "-") not in names:
            hint = did_you_mean(key, names) or f"see taskgraft config {commands[-1]}"
            raise InputError(f"{file}: unknown setting {key!r}; {hint}")
    Dict({commands[-1]: values}, source=str(file))(app, commands, arguments)
    _check_length(arguments)


def _read_file(file: Path) -> dict[str, Any]:
    """Read a TOML file, or a YAML file by its suffix."""
    import yaml

    kind = "YAML" if file.suffix.lower() in (".yaml", ".yml") else "TOML"
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--config {file} cannot be read ({error}); check the path") from error
    try:
        values = yaml.safe_load(text) if kind == "YAML" else tomllib.loads(text)
    except (yaml.YAMLError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"{file}: invalid {kind}: {' '.join(str(error).split())}; fix that line") from error
    if not isinstance(values, dict):
        raise InputError(f"{file}: invalid YAML; write lines of the form 'key: value'")
    return {str(key): value for key, value in values.items()}


def config(
    command: Annotated[Command, Parameter(help="Command that the file is for")],
    file: Annotated[Path | None, Parameter(help="File to check; every value is shown with its source")] = None,
    /,
    *,
    schema: bool = False,
) -> None:
    """Print a template for --config, or check a settings file.

    Args:
        schema: Print the JSON schema of the file, for editors
    """
    from taskgraft.cli.app import app

    arguments = app[command].assemble_argument_collection(default_parameter=app.default_parameter, parse_docstring=True)
    if schema:
        console.print_json(_schema(command, _flags(arguments)))
    elif file is None:
        console.print_results(HEADER.format(command=command), *_template(_flags(arguments)))
    else:
        fill(app[command], (command,), arguments, file)
        console.print_results(*_sources(_flags(arguments)))


def _flags(arguments: ArgumentCollection) -> list[Argument]:
    """Return the flags that a file may set."""
    return [a for a in arguments if a.names and a.name.startswith("--") and a.name not in ("--config", "--resume")]


def did_you_mean(name: str, choices: list[str]) -> str:
    """Return a hint for a misspelled name, "" if nothing is similar."""
    matches = difflib.get_close_matches(name, choices, n=1)
    return f"did you mean {matches[0]!r}?" if matches else ""


def _key(flag: Argument) -> str:
    return flag.name.removeprefix("--")


def _toml(value: Any) -> str:
    """Write a value as TOML."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value if isinstance(value, bool | int | float) else str(value), ensure_ascii=False)


def _default(flag: Argument) -> str:
    default = flag.field_info.default
    if default is None or default is flag.field_info.empty:
        return "[]" if "list[" in str(flag.hint) else '""'
    return _toml(default)


def _template(flags: list[Argument]) -> list[str]:
    lines: list[str] = []
    for panel in PANELS:
        members = [flag for flag in flags if flag.parameter.group == (panel,)]
        lines += ["", f"# ---- {panel.name}"] if members else []
        for flag in members:
            lines += ["", f"# {flag.parameter.help}", f"# {_key(flag)} = {_default(flag)}"]
    return lines


def _sources(flags: list[Argument]) -> list[str]:
    """Return a line `key = value  # source` for each flag; raises InputError for an illegal value."""
    lines = []
    for flag in flags:
        if not flag.tokens:
            unset = flag.field_info.default in (None, "", flag.field_info.empty)
            lines.append(f"# {_key(flag)}: not set" if unset else f"{_key(flag)} = {_default(flag)}  # default")
            continue
        value = flag.convert_and_validate()
        option = DECLARED.get(flag.field_info.name)
        reason = option.violation(value) if option and option.range else None
        if reason:
            raise InputError(f"{_key(flag)} {value!r}: {reason}")
        lines.append(f"{_key(flag)} = {_toml(value)}  # file")
    return lines


def _schema(command: str, flags: list[Argument]) -> dict[str, Any]:
    """Return the JSON schema of a command's settings file."""
    from pydantic import TypeAdapter

    properties = {}
    for flag in flags:
        entry = {"description": flag.parameter.help, **TypeAdapter(flag.resolved_hint).json_schema()}
        bounds = DECLARED[flag.field_info.name].range if flag.field_info.name in DECLARED else None
        if bounds:
            entry |= {"minimum": bounds.minimum} if bounds.above is None else {"exclusiveMinimum": bounds.above}
            entry |= {} if bounds.at_most is None else {"maximum": bounds.at_most}
        properties[_key(flag)] = entry
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"taskgraft {command}",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }
