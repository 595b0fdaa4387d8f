"""A message names no flag that the command that says it lacks, and proposes no command that does not parse."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskgraft.cli import training
from taskgraft.cli.app import way_on
from typed import COMMANDS, flags, understood

ROOT = Path(__file__).parents[2]
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
TRAINING = ("train", "extend", "compare", "tune")
OPENING = ("extend", "compare", "tune", "evaluate", "predict", "distribution", "export", "serve")
READING = (*TRAINING, "evaluate", "calibrate")
# Who can say what stands in a module, for those with messages that name a flag; the first that fits counts.
SAYERS = {
    "bundle/digests.py": ("evaluate",),
    "bundle/": OPENING,  # and `train --weights` and `check --against`, of which no class names are asked
    "classifier.py": ("extend", "compare", "tune"),
    "cli/config.py": TRAINING,
    "cli/inspecting.py": ("evaluate",),
    "cli/launch.py": ("train", "extend"),
    "cli/training.py": ("extend",),
    "cli/using.py": ("predict", "distribution"),
    "data/cache.py": READING,
    "data/curation.py": ("check",),
    "data/formats.py": (*READING, "check"),  # and `export --check TABLE`, whose column must bear the task's name
    "exports/": ("export",),
    "jobs/auto.py": ("extend",),
    "jobs/check.py": ("check",),
    "jobs/distribution.py": ("distribution",),
    "jobs/evidence.py": TRAINING,
    "jobs/fitting.py": ("extend", "compare", "tune"),
    "jobs/outcome.py": ("tune", "extend"),
    "jobs/parts.py": ("predict",),
    "jobs/predict.py": ("predict", "distribution"),
    "jobs/request.py": ("extend", "compare", "tune"),
    "jobs/rows.py": ("predict",),
    "jobs/tracking.py": ("train", "extend", "tune"),
    "jobs/train.py": ("train",),
    "jobs/tune.py": ("tune",),
    "jobs/workers.py": ("tune",),
    "loop/": TRAINING,
    "methods/": ("extend", "compare", "tune"),
    "report/page.py": ("check", "evaluate"),
    "search/queue.py": ("tune", "extend"),
    "search/": ("tune",),
    "serving/": ("serve",),
}
# Messages that only some of those say, by their beginning.
FEWER = {
    "--into ": ("extend",),
    "--rates ": ("compare",),
    "--estimator ": ("distribution",),
    "--joint ": ("distribution",),
    "answers on stdout ": ("predict",),
    "‹folder› holds this run, unfinished": ("train", "extend"),
    "--top ": ("predict",),
    "‹out› exists or was begun": ("predict",),
}
# Who is meant where a message tells of another command than the one that says it.
NAMED = re.compile(r"\b(train|extend|compare|tune)(?: with(?: a method that [a-z ]*, such as)?)? (--[a-z-]+)")


@pytest.fixture(scope="module")
def messages() -> Iterator[list]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "docs")
        yield importlib.import_module("errors").messages()


def start_of(path: str) -> str:
    """The line of SAYERS that tells who can say what stands in a module."""
    found = [start for start in SAYERS if path.startswith(start)]
    assert found, f"{path} says something of a flag: who can?"
    return found[0]


def test_each_flag_of_a_message_is_one_of_those_who_say_it(messages: list) -> None:
    seen, used = 0, set()
    for message in messages:
        named = {flag: verb for verb, flag in NAMED.findall(message.text)}
        fewer = next((own for begin, own in FEWER.items() if message.text.startswith(begin)), None)
        for flag in FLAG.findall(message.text.replace("ray start --head", "")):
            start = start_of(message.path)
            own = (named[flag],) if flag in named else fewer or SAYERS[start]
            lacking = [verb for verb in own if flag not in flags(verb)]
            assert not lacking, f"{lacking} has no {flag}: {message.text}"
            seen += 1
            used.add(start)
    assert seen > 80
    assert used == set(SAYERS)


def literals() -> Iterator[tuple[Path, str]]:
    """Every text in the package, but for docstrings."""
    for path in sorted((ROOT / "src").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        bare = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in bare:
                yield path, node.value


def test_every_flag_that_any_text_names_is_one_of_a_command() -> None:
    known = {flag for verb in COMMANDS for flag in flags(verb)} | {"--debug", "--version", "--help"}
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
        for found in re.findall(r"`taskgraft ([a-z]+)[^`]*`", text):
            assert found in COMMANDS or found == "config", text
            seen += 1
    assert seen > 2
    for line in training.EXAMPLES.values():
        understood(line.removeprefix("Example: "))


@pytest.mark.parametrize(
    ("words", "way"),
    [
        ("train a b", "with --resume goes on"),
        ("extend a b c --task x", "with --resume goes on"),
        ("--debug extend a b c --task x", "with --resume goes on"),
        ("extend a b c --task x --method auto", "goes on"),
        ("compare a b c --task x", "goes on"),
        ("tune a b c --task x", "goes on"),
        ("demo", "goes on"),
        ("predict a b --out c.csv", "with --resume goes on"),
        ("predict a b", "begins anew"),
        ("check a", "begins anew"),
        ("export a b", "begins anew"),
    ],
)
def test_what_a_stopped_command_says_names_its_own_flags(words: str, way: str) -> None:
    assert way_on(words.split()) == way
    verb = next(word for word in words.split() if not word.startswith("-"))
    assert ("--resume" in flags(verb)) >= ("--resume" in way)
