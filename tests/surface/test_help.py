"""Help and version: complete, with examples, and without waiting for torch."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import fields

import click
import pytest
import typer

import taskgraft
from taskgraft.cli import app, main
from taskgraft.config import TRAIN_DEFAULTS, TrainingConfig, options
from taskgraft.methods.registry import METHODS

GROUP = typer.main.get_command(app)
COMMANDS: Mapping[str, click.Command] = GROUP.commands  # pyright: ignore[reportAttributeAccessIssue]
WITH_RUN = ["train", "extend", "compare"]


def told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["taskgraft", *arguments])
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("NO_COLOR", "1")
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return re.sub(r"\x1b\[[0-9;]*m", "", captured.out)


def test_all_commands_are_listed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    text = told(capsys, monkeypatch, "--help")
    assert {"train", "extend", "compare", "evaluate", "report", "methods", "check", "demo"} <= COMMANDS.keys()
    for name, command in COMMANDS.items():
        assert re.search(rf"\b{name}\b", text)
        assert command.help
    assert "Start with: taskgraft demo" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_each_help_names_an_example_that_parses(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = " ".join(told(capsys, monkeypatch, name, "--help").split())
    epilog = COMMANDS[name].epilog
    assert epilog
    assert f"Example: taskgraft {name}" in text
    words = shlex.split(epilog.removeprefix("Example: taskgraft "))
    assert words[0] == name
    COMMANDS[name].make_context(name, words[1:], resilient_parsing=False).close()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_argument_and_flag_is_explained(name: str) -> None:
    silent = [parameter.name for parameter in COMMANDS[name].params if not getattr(parameter, "help", None)]
    assert silent == []


@pytest.mark.parametrize("name", WITH_RUN)
def test_every_setting_has_a_flag(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = {flag for parameter in COMMANDS[name].params for flag in parameter.opts}
    preprocessing = {"--" + field.name.replace("_", "-") for field in fields(TrainingConfig)}
    assert preprocessing <= flags
    text = told(capsys, monkeypatch, name, "--help")
    defaults = TRAIN_DEFAULTS if name == "train" else TrainingConfig()
    for key, option in options(TrainingConfig).items():
        if key == "log_every":
            continue
        assert f"--{key.replace('_', '-')}" in text
        assert option.help.split(";")[0][:20] in " ".join(text.replace("│", " ").split())
        assert f"[default: {getattr(defaults, key)}]" in " ".join(text.replace("│", " ").split())


def test_the_version(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(capsys, monkeypatch, "--version") == f"taskgraft {taskgraft.__version__}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["extend", "--help"]])
def test_answers_without_torch(arguments: list[str]) -> None:
    code = (
        "import sys, atexit\n"
        "heavy = ('torch', 'timm', 'torchvision', 'matplotlib')\n"
        "atexit.register(lambda: print('HEAVY', [name for name in heavy if name in sys.modules]))\n"
        f"sys.argv = ['taskgraft', *{arguments!r}]\n"
        "from taskgraft.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "taskgraft" in done.stdout
    assert done.stdout.endswith("HEAVY []\n")


def test_the_methods_are_listed_with_their_settings(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["taskgraft", "methods"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    listed = capsys.readouterr().out
    assert re.findall(r"^(\w+)  ", listed, re.M) == list(METHODS)
    monkeypatch.setattr(sys, "argv", ["taskgraft", "methods", "distill"])
    with pytest.raises(SystemExit):
        main()
    one = capsys.readouterr().out
    assert "strength = 1.0   must be at least 0 (usual values: 0.01 to 100)" in one
    assert "temperature = 2.0   must be above 0" in one
