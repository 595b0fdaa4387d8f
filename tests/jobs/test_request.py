"""What an extension is asked for, and the command that asks for it again."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from taskgraft.jobs.request import Request, checked, command_line
from taskgraft.problem import Problem
from taskgraft.settings import Run, validate

ASKED = Request("a b.pth", Path("new"), "paint", "ewc( strength = 3 )", Run(rate=0.5), old_val=(Path("x"), Path("y")))


def test_a_command_can_be_typed_again() -> None:
    request, _ = checked(replace(ASKED, arch="resnet18"))
    line = command_line(request, Path("out"))
    assert line == (
        "taskgraft extend 'a b.pth' new out --task paint --method 'ewc(strength=3)' "
        "--old-val x --old-val y --arch resnet18 --rate 0.5"
    )
    assert shlex.split(line)[2] == "a b.pth"


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a.b", "x" * 65, "ta\nsk"])
def test_a_task_name_must_do_as_a_file_name(name: str) -> None:
    with pytest.raises(Problem, match="task name"):
        checked(replace(ASKED, task=name))


@pytest.mark.parametrize(
    "change", [{"rate": 0.0}, {"steps": 0}, {"rate": float("nan")}, {"batch": 1.5}, {"norm": "x"}, {"seed": -1}]
)
def test_settings_out_of_range_are_named(change: dict) -> None:
    with pytest.raises(Problem, match=next(iter(change))):
        validate(replace(Run(), **change))
