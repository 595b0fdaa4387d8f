"""What may be left open, how it is written, and what a trial's values stand for."""

from __future__ import annotations

import pytest

from taskgraft import TaskgraftError, TrainingConfig
from taskgraft.config import options
from taskgraft.methods import notation
from taskgraft.tuning import space
from taskgraft.tuning.space import Among, Between, Space

RUN = TrainingConfig()


def test_open_values_are_read_and_the_rest_stays() -> None:
    found = space.parse("distill(strength=0.1..10, temperature=[1, 2]) + ewc(labels=exact)", "lr=[0.01, 0.001]", RUN)
    assert found.fixed == "distill + ewc(labels=exact)"
    assert found.open == {
        "distill.strength": Between(0.1, 10.0, True, False),
        "distill.temperature": Among((1.0, 2.0)),
        "lr": Among((0.01, 0.001)),
    }


def test_words_can_be_listed() -> None:
    assert space.parse("ewc(labels=[exact, sampled])", "", RUN).open == {"ewc.labels": Among(("exact", "sampled"))}


def test_settings_of_the_run_are_fixed_or_opened() -> None:
    found = space.parse("distill", "steps=50, head_steps=0..200, norm=[train, frozen]", RUN)
    assert found.config.steps == 50
    assert found.open == {"head_steps": Between(0, 200, False, True), "norm": Among(("train", "frozen"))}


@pytest.mark.parametrize(
    "method", ["distill", "ewc", "mas", "l2sp", "taps", "branch", "distill + ewc + wise", "finetune"]
)
def test_where_nothing_is_open_every_declared_range_is(method: str) -> None:
    found = space.parse(method, "", RUN)
    expected = {"lr", "head_steps"}
    for name, settings in notation.parse(method).items():
        declared = options(type(settings)).items()
        expected |= {f"{name}.{key}" for key, option in declared if option.extent and option.extent.searched}
    assert set(found.open) == expected
    for key, extent in found.open.items():
        assert isinstance(extent, Between), key
        assert extent.low < extent.high


def test_what_was_fixed_is_not_opened() -> None:
    assert set(space.parse("distill(strength=3)", "", RUN).open) == {"distill.temperature", "lr", "head_steps"}


@pytest.mark.parametrize(
    ("method", "settings", "said"),
    [
        ("distill(strength=10..1)", "", "smaller value first"),
        ("distill(strength=1..1)", "", "empty"),
        ("distill(strength=[])", "", "list some values"),
        ("distill(strength=[1, 1])", "", "each once"),
        ("distill(strength=-1..1)", "", "at least 0"),
        ("distill(strngth=1..2)", "", "strength"),
        ("distil(strength=1..2)", "", "did you mean 'distill'"),
        ("ewc(labels=1..2)", "", "give one of"),
        ("distill(strength=1..)", "", "cannot be read"),
        ("distill", "rat=1..2", "no setting 'rat'"),
        ("distill", "lr=0..1", "above 0"),
        ("distill", "lr", "name=values"),
        ("distill", "lr=", "cannot be read"),
        ("distill", "steps=[1.5]", "whole number"),
        ("distill", "__import__('os')", "name=values"),
    ],
)
def test_contradictions_are_refused_in_words(method: str, settings: str, said: str) -> None:
    with pytest.raises(TaskgraftError, match=said) as caught:
        space.parse(method, settings, RUN)
    assert "\n" not in str(caught.value)


def test_a_grid_has_every_combination_once_on_each_scale() -> None:
    found = space.parse("distill(strength=0.01..100)", "head_steps=0..8, lr=[0.1, 0.2]", RUN)
    cells = space.grid(found, 5)
    assert len(cells) == len({tuple(cell.items()) for cell in cells}) == 50
    assert sorted({cell["distill.strength"] for cell in cells}) == [0.01, 0.1, 1.0, 10.0, 100.0]
    assert sorted({cell["head_steps"] for cell in cells}) == [0, 2, 4, 6, 8]


def test_values_become_a_notation_and_a_run() -> None:
    found = space.parse("distill(strength=1..9) + wise", "lr=[0.1, 0.2]", RUN)
    notation, config = space.applied(found, {"distill.strength": 3.0, "lr": 0.2})
    assert notation == "distill(strength=3) + wise"
    assert config == TrainingConfig(lr=0.2)


def test_a_portfolio_chooses_whole_methods() -> None:
    found = space.portfolio(["branch", "distill + ewc"], [0.1], TrainingConfig(steps=7))
    assert isinstance(found, Space)
    assert [space.applied(found, cell) for cell in space.grid(found, 3)] == [
        ("branch", TrainingConfig(steps=7, lr=0.1)),
        ("distill + ewc", TrainingConfig(steps=7, lr=0.1)),
    ]
