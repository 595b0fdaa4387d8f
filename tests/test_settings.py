"""Which values are legal, and the words for those that are not."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any, Literal, get_args, get_origin

import pytest

from taskgraft.problem import Problem
from taskgraft.settings import LEARN, Range, Run, options, rate_at, validate


@pytest.mark.parametrize("run", [Run(), LEARN])
def test_the_defaults_are_legal(run: Run) -> None:
    assert validate(run) is run


def test_every_setting_says_what_it_means() -> None:
    found = options(Run)
    assert list(found) == [field.name for field in fields(Run)]
    for name, option in found.items():
        assert option.meaning, name
        assert option.default == getattr(Run(), name)
        assert get_origin(option.kind) is Literal or option.extent is not None


def illegal() -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, option in options(Run).items():
        wrong: list[Any] = [None, "nonsense", float("nan"), float("inf"), True, 10**400]
        if option.extent is not None:
            wrong += [-1]
            if option.kind is int:
                wrong += [option.default + 0.5]
        found += [(name, value) for value in wrong]
    return found


@pytest.mark.parametrize(("name", "value"), [*illegal(), ("rate", 0), ("steps", 0), ("batch", 0), ("eval_every", 0)])
def test_an_illegal_value_is_named(name: str, value: Any) -> None:
    with pytest.raises(Problem, match=rf"^{name} .*: (give|must be)") as caught:
        validate(replace(Run(), **{name: value}))
    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("name", "value"), [("decay", 0), ("clip", 0), ("views", 0), ("ramp", 0), ("warmup", 0), ("seed", 0), ("rate", 1e9)]
)
def test_the_ends_of_what_is_legal(name: str, value: float) -> None:
    validate(replace(Run(), **{name: value}))


def test_every_word_is_legal() -> None:
    for name, option in options(Run).items():
        for word in get_args(option.kind) if get_origin(option.kind) is Literal else ():
            validate(replace(Run(), **{name: word}))


def test_a_rule_in_words() -> None:
    assert Range(1, 8, above=0).rule() == "must be above 0 (usual values: 1 to 8)"
    assert Range(1, 8, at_least=0.5).rule() == "must be at least 0.5 (usual values: 1 to 8)"
    assert Range(1, 8).rule() == "must be at least 1 (usual values: 1 to 8)"
    assert [Range(1, 8, above=0).allows(value) for value in (-1, 0, 1e-9, 99)] == [False, False, True, True]
    assert [Range(1, 8).allows(value) for value in (0.9, 1, 99)] == [False, True, True]


def test_the_rate_is_a_formula_of_the_step() -> None:
    run = Run(steps=10, rate=0.4, schedule="constant")
    assert [rate_at(run, step) for step in range(10)] == [0.4] * 10
    cosine = replace(run, schedule="cosine")
    assert rate_at(cosine, 0) == 0.4
    assert rate_at(cosine, 5) == pytest.approx(0.2)
    assert rate_at(cosine, 9) == pytest.approx(0.2 * (1 + math.cos(0.9 * math.pi)))
    falling = [rate_at(cosine, step) for step in range(10)]
    assert falling == sorted(falling, reverse=True)
    assert falling[-1] > 0
    ramp = [rate_at(replace(run, ramp=4), step) for step in range(6)]
    assert ramp == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])
