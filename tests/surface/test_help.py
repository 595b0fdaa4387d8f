"""Help, version and the list of methods: complete, with examples, and without waiting for torch."""

from __future__ import annotations

import shlex
import subprocess
import sys
from dataclasses import fields

import pytest

import taskgraft
from cli_parsing import COMMANDS, arguments_of, flags_of, parse
from taskgraft.cli import main
from taskgraft.config import TRAIN_DEFAULTS, TrainingConfig
from taskgraft.methods.registry import METHODS


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Run a command that succeeds, and return what it prints with single spaces."""

    def run(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["taskgraft", *words])
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setenv("NO_COLOR", "1")
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 0
        captured = capsys.readouterr()
        assert captured.err == ""
        return " ".join(captured.out.replace("│", " ").split())

    return run


def test_help_lists_all_commands(printed) -> None:
    text = printed("--help")
    assert text == printed()
    assert "Start with: taskgraft demo" in text
    for name in COMMANDS:
        assert f" {name} " in text


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_an_example_that_parses(name: str, printed) -> None:
    example = COMMANDS[name].help_epilogue
    assert example
    assert example in printed(name, "--help")
    words = shlex.split(example.removeprefix("Example: taskgraft "))
    assert words[0] == name
    parse(words)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_argument_is_described(name: str) -> None:
    for argument in arguments_of(name):
        if argument.name != "*":
            assert argument.parameter.help, argument.name
            assert not argument.parameter.help.endswith("."), argument.name


@pytest.mark.parametrize("name", ["train", "extend", "compare", "tune"])
def test_every_training_setting_is_a_flag_with_its_default(name: str, printed) -> None:
    text = printed(name, "--help")
    defaults = TRAIN_DEFAULTS if name == "train" else TrainingConfig()
    for setting in fields(TrainingConfig):
        flag = f"--{setting.name.replace('_', '-')}"
        assert flag in flags_of(name)
        row = text.partition(f" {flag} ")[2].partition(" --")[0]
        assert setting.metadata["help"] in row
        default = getattr(defaults, setting.name)
        assert f"[default: {default}]" in row or default is False, "a switch that is off needs no word"


def test_version(printed) -> None:
    assert printed("--version") == f"taskgraft {taskgraft.__version__}"


def test_methods_are_listed(printed) -> None:
    text = printed("methods")
    for name, method in METHODS.items():
        assert f"{name} {(method.__doc__ or '').splitlines()[0]}" in text


def test_settings_of_a_method_are_listed(printed) -> None:
    text = printed("methods", "distill")
    assert "strength = 1.0 must be at least 0 (usual values: 0.01 to 100)" in text
    assert "temperature = 2.0 must be above 0" in text


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["extend", "--help"]])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    code = f"""
import atexit, sys
heavy = ("torch", "timm", "torchvision", "matplotlib", "jinja2", "huggingface_hub")
atexit.register(lambda: print([name for name in heavy if name in sys.modules]))
sys.argv = ["taskgraft", *{words!r}]
from taskgraft.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("[]\n")
