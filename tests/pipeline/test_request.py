"""What an extension is asked for, and the command that asks for it again."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from taskgraft.config import TrainingConfig, validate
from taskgraft.errors import TaskgraftError
from taskgraft.pipeline.request import Request, validate_request

ASKED = Request(
    "a b.pth", Path("new"), "paint", "ewc( strength = 3 )", TrainingConfig(lr=0.5), old_val=(Path("x"), Path("y"))
)


def test_build_command() -> None:
    request, _ = validate_request(replace(ASKED, arch="resnet18"))
    line = request.build_command(Path("out"))
    assert line == (
        "taskgraft extend 'a b.pth' new out --task paint --method 'ewc(strength=3)' "
        "--old-val x --old-val y --arch resnet18 --lr 0.5"
    )
    assert shlex.split(line)[2] == "a b.pth"


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a.b", "x" * 65, "ta\nsk"])
def test_task_name_must_be_a_file_name(name: str) -> None:
    with pytest.raises(TaskgraftError, match="task name"):
        validate_request(replace(ASKED, task=name))


@pytest.mark.parametrize(
    "change", [{"lr": 0.0}, {"steps": 0}, {"lr": float("nan")}, {"batch_size": 1.5}, {"norm": "x"}, {"seed": -1}]
)
def test_settings_out_of_range(change: dict) -> None:
    with pytest.raises(TaskgraftError, match=next(iter(change))):
        validate(replace(TrainingConfig(), **change))


def test_what_is_neither_a_path_nor_a_model_is_refused() -> None:
    given: Any = [1, 2]
    with pytest.raises(
        TaskgraftError, match=r"parent is a list; give a path or a name, a Bundle, or make a Classifier"
    ):
        Request(given, "images", "paint")
    with pytest.raises(TaskgraftError, match=r"data gives a int; give one of pairs \(image, class\)"):
        Request("parent", given, "paint")
