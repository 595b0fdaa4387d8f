"""Sampling is a function of the earlier results, stays within the space and avoids repetition."""

from __future__ import annotations

import pytest
from optuna.trial import create_trial

from taskgraft import InputError, TrainingConfig
from taskgraft.results.search import TrialResult
from taskgraft.tuning import sampler, space
from taskgraft.tuning.space import Choices

WIDE = space.parse("distill(strength=0.1..10)", "lr=[0.01, 0.1], head_steps=0..50", TrainingConfig())
SMALL = space.parse("distill(strength=[1, 2])", "lr=[0.01, 0.1]", TrainingConfig())


@pytest.mark.parametrize("name", sampler.SAMPLERS)
def test_waves_are_reproducible_and_differ(name: str) -> None:
    first = sampler.suggest(WIDE, name, [], 0, 6, seed=1, wave_size=6)
    assert sampler.suggest(WIDE, name, [], 0, 6, seed=1, wave_size=6) == first
    assert sampler.suggest(WIDE, name, [], 0, 3, seed=1, wave_size=6) == first[:3]
    assert sampler.suggest(WIDE, name, [], 1, 6, seed=1, wave_size=6) != first


@pytest.mark.parametrize("name", sampler.SAMPLERS)
def test_samples_lie_in_the_space(name: str) -> None:
    for suggestion in sampler.suggest(WIDE, name, [], 0, 6, seed=1, wave_size=6):
        for key, value in suggestion.params.items():
            dim = WIDE.dimensions[key]
            assert value in dim.values if isinstance(dim, Choices) else dim.low <= value <= dim.high
        strength = suggestion.params["distill.strength"]
        assert float(f"{strength:.3g}") == strength


@pytest.mark.parametrize("name", sampler.SAMPLERS)
def test_a_small_space_is_exhausted_before_repetition(name: str) -> None:
    points = [tuple(one.params.values()) for one in sampler.suggest(SMALL, name, [], 0, 4, seed=3, wave_size=4)]
    assert len(set(points)) == 4
    assert len(sampler.suggest(SMALL, name, [], 0, 6, seed=3, wave_size=6)) == 6


def test_tpe_learns_from_past_trials() -> None:
    past = [
        create_trial(
            values=[1 - abs(strength - 5) / 10] * 2,
            params={"distill.strength": strength, "lr": 0.01, "head_steps": 5},
            distributions=sampler.to_distributions(WIDE),
        )
        for strength in [0.1 * 1.2**step for step in range(25)]
    ]

    def mean_error(name: str) -> float:
        suggestions = sampler.suggest(WIDE, name, past, 1, 12, seed=0, wave_size=8)
        return sum(abs(one.params["distill.strength"] - 5) for one in suggestions) / len(suggestions)

    assert mean_error("tpe") < mean_error("random")


@pytest.mark.parametrize(("name", "message"), [("gp", "supports one objective"), ("greedy", "does not exist")])
def test_unsuitable_samplers_are_rejected(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        sampler.check_sampler(name)


def test_importance_names_the_setting_that_matters() -> None:
    trials = [
        TrialResult(
            number=index, wave=0, state="complete", old=1 - abs(strength - 5) / 10, new=0.5,
            params={"distill.strength": strength, "lr": (0.01, 0.1)[index % 2], "head_steps": 5},
        )
        for index, strength in enumerate(0.1 * 1.2**step for step in range(25))
    ]  # fmt: skip
    importance = sampler.compute_importance(WIDE, trials)["old"]
    assert importance["distill.strength"] == max(importance.values())
    assert sampler.compute_importance(WIDE, trials[:3]) == {}
