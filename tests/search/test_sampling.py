"""Suggestions are functions of what is known, lie in the space, and repeat nothing while there is something new."""

from __future__ import annotations

import pytest
from optuna.trial import create_trial

from taskgraft import Problem, Run
from taskgraft.search import sampling, space
from taskgraft.search.space import Among, Between

WIDE = space.parse("distill(strength=0.1..10)", "rate=[0.01, 0.1], warmup=0..50", Run())
SMALL = space.parse("distill(strength=[1, 2])", "rate=[0.01, 0.1]", Run())


@pytest.mark.parametrize("sampler", sorted(sampling.SAMPLERS))
def test_the_same_wave_is_suggested_again_and_another_one_differs(sampler: str) -> None:
    first = sampling.suggest(WIDE, sampler, [], 0, 6, seed=1, size=6)
    assert sampling.suggest(WIDE, sampler, [], 0, 6, seed=1, size=6) == first
    assert sampling.suggest(WIDE, sampler, [], 1, 6, seed=1, size=6) != first
    for one in first:
        for key, value in one.params.items():
            extent = WIDE.open[key]
            inside = value in extent.values if isinstance(extent, Among) else extent.low <= value <= extent.high
            assert inside, (key, value)
            if isinstance(extent, Between) and not extent.whole:
                assert float(f"{value:.3g}") == value


@pytest.mark.parametrize("sampler", sorted(sampling.SAMPLERS))
def test_a_small_space_is_tried_whole_before_anything_twice(sampler: str) -> None:
    found = [tuple(one.params.values()) for one in sampling.suggest(SMALL, sampler, [], 0, 4, seed=3, size=4)]
    assert len(set(found)) == 4
    assert len(sampling.suggest(SMALL, sampler, [], 0, 6, seed=3, size=6)) == 6  # more were asked for than there are


def test_tpe_learns_from_what_is_known() -> None:
    found = sampling.distributions(WIDE)
    known = [
        create_trial(
            values=[1 - abs(strength - 5) / 10] * 2,
            params={"distill.strength": strength, "rate": 0.01, "warmup": 5},
            distributions=found,
        )
        for strength in [0.1 * 1.2**step for step in range(25)]
    ]
    asked = [one.params["distill.strength"] for one in sampling.suggest(WIDE, "tpe", known, 1, 12, seed=0, size=8)]
    blind = [one.params["distill.strength"] for one in sampling.suggest(WIDE, "random", [], 1, 12, seed=0, size=8)]
    assert sum(abs(value - 5) for value in asked) < sum(abs(value - 5) for value in blind)
    shares = sampling.importance(known)
    assert shares["old"]["distill.strength"] == max(shares["old"].values())


@pytest.mark.parametrize(("name", "said"), [("gp", "one objective"), ("greedy", "does not exist")])
def test_samplers_that_cannot_are_refused(name: str, said: str) -> None:
    with pytest.raises(Problem, match=said):
        sampling.check(name)
