"""Which values are legal, and the words for those that are not."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any, Literal, get_args, get_origin

import pytest

from taskgraft.config import TRAIN_DEFAULTS, Range, TrainingConfig, lr_at, options, resolve_steps, validate
from taskgraft.errors import TaskgraftError


@pytest.mark.parametrize("config", [TrainingConfig(), TRAIN_DEFAULTS])
def test_the_defaults_are_legal(config: TrainingConfig) -> None:
    assert validate(config) is config


def test_every_setting_says_what_it_means() -> None:
    result = options(TrainingConfig)
    assert list(result) == [field.name for field in fields(TrainingConfig)]
    for name, option in result.items():
        assert option.help, name
        assert option.default == getattr(TrainingConfig(), name)
        assert get_origin(option.kind) is Literal or option.kind is bool or option.range is not None


def illegal() -> list[tuple[str, Any]]:
    result: list[tuple[str, Any]] = []
    for name, option in options(TrainingConfig).items():
        wrong: list[Any] = [None, "nonsense", float("nan"), float("inf"), 10**400]
        wrong += [1] if option.kind is bool else [True]
        if option.range is not None:
            wrong += [-1]
            if option.kind is int:
                wrong += [option.default + 0.5]
        result += [(name, value) for value in wrong]
    return result


@pytest.mark.parametrize(("name", "value"), [*illegal(), ("lr", 0), ("steps", 0), ("batch_size", 0), ("eval_every", 0)])
def test_an_illegal_value_is_named(name: str, value: Any) -> None:
    with pytest.raises(TaskgraftError, match=rf"^{name} .*: (give|must be)") as caught:
        validate(replace(TrainingConfig(), **{name: value}))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("weight_decay", 0),
        ("clip_grad", 0),
        ("views", 0),
        ("warmup_steps", 0),
        ("head_steps", 0),
        ("seed", 0),
        ("lr", 1e9),
    ],
)
def test_the_ends_of_what_is_legal(name: str, value: float) -> None:
    validate(replace(TrainingConfig(), **{name: value}))


def test_every_word_is_legal() -> None:
    for name, option in options(TrainingConfig).items():
        for word in get_args(option.kind) if get_origin(option.kind) is Literal else ():
            validate(replace(TrainingConfig(), **{name: word}))


def test_a_rule_in_words() -> None:
    assert Range(1, 8, above=0).rule() == "must be above 0 (usual values: 1 to 8)"
    assert Range(1, 8, at_least=0.5).rule() == "must be at least 0.5 (usual values: 1 to 8)"
    assert Range(1, 8).rule() == "must be at least 1 (usual values: 1 to 8)"
    assert [Range(1, 8, above=0).allows(value) for value in (-1, 0, 1e-9, 99)] == [False, False, True, True]
    assert [Range(1, 8).allows(value) for value in (0.9, 1, 99)] == [False, True, True]


def test_epochs_become_steps_once_the_images_are_counted() -> None:
    def steps(epochs: float, images: int, batch_size: int) -> int:
        return resolve_steps(TrainingConfig(steps=7, epochs=epochs), images, batch_size).steps

    assert [steps(1, 100, 10), steps(1, 101, 10), steps(0.5, 100, 10), steps(0.001, 10, 10)] == [10, 11, 5, 1]
    assert steps(0.1, 300, 10) == 3, "0.1 * 300 / 10 is a little above 3"
    assert steps(0, 100, 10) == 7


def test_steps_and_epochs_are_not_both_given() -> None:
    validate(TrainingConfig(epochs=2))
    validate(replace(TRAIN_DEFAULTS, epochs=2), TRAIN_DEFAULTS)
    with pytest.raises(TaskgraftError, match=r"^steps 50 and epochs 2: give one of them$"):
        validate(TrainingConfig(steps=50, epochs=2))


def test_the_rate_is_a_formula_of_the_step() -> None:
    config = TrainingConfig(steps=10, lr=0.4, schedule="constant")
    assert [lr_at(config, step) for step in range(10)] == [0.4] * 10
    cosine = replace(config, schedule="cosine")
    assert lr_at(cosine, 0) == 0.4
    assert lr_at(cosine, 5) == pytest.approx(0.2)
    assert lr_at(cosine, 9) == pytest.approx(0.2 * (1 + math.cos(0.9 * math.pi)))
    falling = [lr_at(cosine, step) for step in range(10)]
    assert falling == sorted(falling, reverse=True)
    assert falling[-1] > 0
    warmup_steps = [lr_at(replace(config, warmup_steps=4), step) for step in range(6)]
    assert warmup_steps == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])
