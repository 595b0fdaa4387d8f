"""Suggestions are functions of what is known, lie in the space, and repeat nothing while there is something new."""

from __future__ import annotations

import pytest
from optuna.trial import create_trial

from taskgraft import TaskgraftError, TrainingConfig
from taskgraft.tuning import sampler, space
from taskgraft.tuning.space import Among, Between

WIDE = space.parse("distill(strength=0.1..10)", "lr=[0.01, 0.1], head_steps=0..50", TrainingConfig())
SMALL = space.parse("distill(strength=[1, 2])", "lr=[0.01, 0.1]", TrainingConfig())


@pytest.mark.parametrize("name", sorted(sampler.SAMPLERS))
def test_the_same_wave_is_suggested_again_and_another_one_differs(name: str) -> None:
    first = sampler.suggest(WIDE, name, [], 0, 6, seed=1, size=6)
    assert sampler.suggest(WIDE, name, [], 0, 6, seed=1, size=6) == first
    assert sampler.suggest(WIDE, name, [], 1, 6, seed=1, size=6) != first
    for one in first:
        for key, value in one.params.items():
            extent = WIDE.open[key]
            inside = value in extent.values if isinstance(extent, Among) else extent.low <= value <= extent.high
            assert inside, (key, value)
            if isinstance(extent, Between) and not extent.whole:
                assert float(f"{value:.3g}") == value


@pytest.mark.parametrize("name", sorted(sampler.SAMPLERS))
def test_a_small_space_is_tried_whole_before_anything_twice(name: str) -> None:
    found = [tuple(one.params.values()) for one in sampler.suggest(SMALL, name, [], 0, 4, seed=3, size=4)]
    assert len(set(found)) == 4
    assert len(sampler.suggest(SMALL, name, [], 0, 6, seed=3, size=6)) == 6  # more were asked for than there are


def test_tpe_learns_from_what_is_known() -> None:
    found = sampler.distributions(WIDE)
    known = [
        create_trial(
            values=[1 - abs(strength - 5) / 10] * 2,
            params={"distill.strength": strength, "lr": 0.01, "head_steps": 5},
            distributions=found,
        )
        for strength in [0.1 * 1.2**step for step in range(25)]
    ]
    asked = [one.params["distill.strength"] for one in sampler.suggest(WIDE, "tpe", known, 1, 12, seed=0, size=8)]
    blind = [one.params["distill.strength"] for one in sampler.suggest(WIDE, "random", [], 1, 12, seed=0, size=8)]
    assert sum(abs(value - 5) for value in asked) < sum(abs(value - 5) for value in blind)
    shares = sampler.importance(known)
    assert shares["old"]["distill.strength"] == max(shares["old"].values())


@pytest.mark.parametrize(("name", "said"), [("gp", "one objective"), ("greedy", "does not exist")])
def test_samplers_that_cannot_are_refused(name: str, said: str) -> None:
    with pytest.raises(TaskgraftError, match=said):
        sampler.check(name)
