"""How a search space is written, and what a point of it stands for."""

from __future__ import annotations

import pytest

from taskgraft import InputError, TrainingConfig
from taskgraft.config import options
from taskgraft.methods import notation
from taskgraft.tuning import space
from taskgraft.tuning.space import Choices, ValueRange

CONFIG = TrainingConfig()


def test_ranges_and_lists_are_dimensions_and_the_rest_is_fixed() -> None:
    result = space.parse(
        "distill(strength=0.1..10, temperature=[1, 2]) + ewc(labels=exact)", "lr=[0.01, 0.001]", CONFIG
    )
    assert result.method == "distill + ewc(labels=exact)"
    assert result.dimensions == {
        "distill.strength": ValueRange(0.1, 10.0, True, False),
        "distill.temperature": Choices((1.0, 2.0)),
        "lr": Choices((0.01, 0.001)),
    }


def test_words_can_be_listed() -> None:
    result = space.parse("ewc(labels=[exact, sampled])", "", CONFIG)
    assert result.dimensions == {"ewc.labels": Choices(("exact", "sampled"))}


def test_training_settings_are_fixed_or_searched() -> None:
    result = space.parse("distill", "steps=50, head_steps=0..200, norm=[train, frozen]", CONFIG)
    assert result.config.steps == 50
    assert result.dimensions == {
        "head_steps": ValueRange(0, 200, False, True),
        "norm": Choices(("train", "frozen")),
    }


@pytest.mark.parametrize(
    "method", ["distill", "ewc", "mas", "l2sp", "taps", "branch", "distill + ewc + wise", "finetune"]
)
def test_every_declared_range_is_searched_by_default(method: str) -> None:
    result = space.parse(method, "", CONFIG)
    expected = {"lr", "head_steps"}
    for name, settings in notation.parse(method).items():
        declared = options(type(settings)).items()
        expected |= {f"{name}.{key}" for key, option in declared if option.range and option.range.searched}
    assert set(result.dimensions) == expected
    for dimension in result.dimensions.values():
        assert isinstance(dimension, ValueRange)
        assert dimension.low < dimension.high


def test_a_given_setting_is_not_searched_by_default() -> None:
    result = space.parse("distill(strength=3)", "", CONFIG)
    assert set(result.dimensions) == {"distill.temperature", "lr", "head_steps"}


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("distill(strength=10..1)", "", "smaller value first"),
        ("distill(strength=1..1)", "", "empty range"),
        ("distill(strength=[])", "", "at least one value"),
        ("distill(strength=[1, 1])", "", "only once"),
        ("distill(strength=-1..1)", "", "at least 0"),
        ("distill(strngth=1..2)", "", "strength"),
        ("distil(strength=1..2)", "", "did you mean 'distill'"),
        ("ewc(labels=1..2)", "", "labels"),
        ("distill(strength=1..)", "", "cannot be parsed"),
        ("distill", "rat=1..2", "unknown setting 'rat'"),
        ("distill", "lr=0..1", "above 0"),
        ("distill", "lr", "name=values"),
        ("distill", "lr=", "cannot be parsed"),
        ("distill", "steps=[1.5]", "steps"),
        ("distill", "__import__('os')", "name=values"),
    ],
)
def test_malformed_spaces_are_rejected(method: str, settings: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        space.parse(method, settings, CONFIG)
    assert "\n" not in str(caught.value)


def test_the_grid_has_every_combination_once() -> None:
    result = space.parse("distill(strength=0.01..100)", "head_steps=0..8, lr=[0.1, 0.2]", CONFIG)
    points = space.grid(result, 5)
    assert len(points) == len({tuple(point.items()) for point in points}) == 50
    assert sorted({point["distill.strength"] for point in points}) == [0.01, 0.1, 1.0, 10.0, 100.0]
    assert sorted({point["head_steps"] for point in points}) == [0, 2, 4, 6, 8]


def test_a_point_is_a_method_and_training_settings() -> None:
    result = space.parse("distill(strength=1..9) + wise", "lr=[0.1, 0.2]", CONFIG)
    method, config = space.apply(result, {"distill.strength": 3.0, "lr": 0.2})
    assert method == "distill(strength=3) + wise"
    assert config == TrainingConfig(lr=0.2)


def test_a_portfolio_has_each_method_at_each_learning_rate() -> None:
    result = space.build_portfolio(["branch", "distill + ewc"], [0.1], TrainingConfig(steps=7))
    assert [space.apply(result, point) for point in space.grid(result, 3)] == [
        ("branch", TrainingConfig(steps=7, lr=0.1)),
        ("distill + ewc", TrainingConfig(steps=7, lr=0.1)),
    ]
