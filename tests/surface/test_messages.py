"""A message names no flag that the command that says it lacks, and proposes no command that does not parse."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli_parsing import COMMANDS, flags_of
from taskgraft.cli.app import how_to_continue

ROOT = Path(__file__).parents[2]
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
TRAINING = ("train", "extend", "refresh", "compress", "merge", "compare", "tune")
OPENING = (*TRAINING, "evaluate", "predict", "distribution", "export", "serve", "check")
# The commands that use each room of the package.
USERS = {
    "bundle": (*OPENING, "sign", "verify"),
    "cli": tuple(COMMANDS),
    "commands": tuple(COMMANDS),
    "data": (*TRAINING, "evaluate", "calibrate", "check", "predict", "distribution"),
    "distributed": TRAINING,
    "exports": ("export",),
    "methods": TRAINING,
    "models": TRAINING,
    "pipeline": TRAINING,
    "report": tuple(COMMANDS),
    "serving": ("serve",),
    "training": TRAINING,
    "tuning": ("tune", "extend"),
}


def users_of(path: str) -> tuple[str, ...]:
    """The commands that use a module: those of its room, or the one that it is named after."""
    room, stem = Path(path).parts[0], Path(path).stem
    return (stem,) if room == "commands" and stem in COMMANDS and stem != "predict" else USERS[room]


def test_flags_in_messages_belong_to_the_command_that_shows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    messages = importlib.import_module("errors").messages()
    result = [(message, flag) for message in messages for flag in FLAG.findall(message.text) if flag != "--head"]
    assert len(result) > 60
    for message, flag in result:
        named = [command for command in COMMANDS if f"{command} with" in message.text]  # such as "or extend with"
        commands = (*users_of(message.path), *named)
        assert any(flag in flags_of(command) for command in commands), f"{message.path}: {message.text}"


def literals() -> Iterator[tuple[Path, str]]:
    """Every text in the package, but for docstrings."""
    for path in sorted((ROOT / "src").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        bare = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in bare:
                yield path, node.value


def test_every_flag_that_any_text_names_is_one_of_a_command() -> None:
    known = {flag for verb in COMMANDS for flag in flags_of(verb)} | {"--debug", "--version", "--help"}
    unknown = [
        f"{path.relative_to(ROOT)}: {flag}" for path, text in literals() for flag in FLAG.findall(text)
        if flag not in known
    ]  # fmt: skip
    others = ("--force-reinstall", "--shm-size", "--data-binary", "--head")  # pip's, docker's, curl's, ray's
    assert {line.rpartition(": ")[2] for line in unknown} == set(others)


def test_the_commands_in_texts_are_understood() -> None:
    said = {text for _, text in literals() if "taskgraft " in text}
    seen = 0
    for text in sorted(said):
        for result in re.findall(r"`taskgraft ([a-z]+)[^`]*`", text):
            assert result in COMMANDS or result == "config", text
            seen += 1
    assert seen


@pytest.mark.parametrize(
    ("words", "way"),
    [
        ("train a b", "rerun with --resume to continue"),
        ("extend a b c --task x", "rerun with --resume to continue"),
        ("--debug extend a b c --task x", "rerun with --resume to continue"),
        ("extend a b c --task x --method auto", "rerun the same command to resume"),
        ("compress a b c", "rerun with --resume to continue"),
        ("merge a b c --images d", "rerun with --resume to continue"),
        ("refresh a b c", "rerun with --resume to continue"),
        ("compare a b c --task x", "rerun the same command to resume"),
        ("tune a b c --task x", "rerun the same command to resume"),
        ("demo", "rerun the same command to resume"),
        ("predict a b --out c.csv", "rerun with --resume to continue"),
        ("predict a b", "nothing was saved"),
        ("check a", "nothing was saved"),
        ("export a b", "nothing was saved"),
    ],
)
def test_a_stopped_command_says_how_to_continue(words: str, way: str) -> None:
    assert how_to_continue(words.split()) == way
    verb = next(word for word in words.split() if not word.startswith("-"))
    assert ("--resume" in flags_of(verb)) >= ("--resume" in way)
