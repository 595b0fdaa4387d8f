"""What to try next: Optuna's samplers, asked for a whole wave at a time.

They are asked in a study in memory that holds the trials of earlier waves, with a seed of the wave's own; so a wave is
a function of what is known, whoever asks, and a stopped search goes on with the same trials.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial

from taskgraft import seeding
from taskgraft.errors import InputError
from taskgraft.tuning.space import Among, Between, Params, Space

SINGLE = ("cmaes", "gp", "qmc")  # samplers of Optuna's that people ask for, and that know one objective only
DIGITS = 3
PATIENCE = 10  # times a sampler may repeat itself before a trial is tried twice
SAMPLERS: dict[str, Callable[[int, int], BaseSampler]] = {
    "random": lambda seed, count: RandomSampler(seed=seed),
    "tpe": lambda seed, count: TPESampler(seed=seed, multivariate=True, constant_liar=True, n_startup_trials=count),
    "nsga2": lambda seed, count: NSGAIISampler(seed=seed, population_size=max(2, count)),
}


class Suggestion(NamedTuple):
    """Values of the open dimensions, and what the sampler notes of them for itself."""

    params: Params
    system: dict[str, Any]


def check(sampler: str) -> str:
    """The sampler's name; raises TaskgraftError for one that does not exist or cannot do two objectives."""
    if sampler in SINGLE:
        raise InputError(
            f"--sampler {sampler} knows one objective, and a search has two; give grid, tpe, nsga2 or random"
        )
    if sampler != "grid" and sampler not in SAMPLERS:
        raise InputError(f"--sampler {sampler!r} does not exist; give grid, tpe, nsga2 or random")
    return sampler


def suggest(
    space: Space, sampler: str, known: Sequence[FrozenTrial], wave: int, count: int, seed: int, size: int
) -> list[Suggestion]:
    """The next `count` trials, given those of earlier waves; `size` is that of a full wave."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        made = SAMPLERS[sampler](seeding.derive(seed, "wave", wave) % 2**32, size)
    study = optuna.create_study(directions=["maximize", "maximize"], sampler=made)
    study.add_trials(known)
    found: list[Suggestion] = []
    tried = [trial.params for trial in known]
    for turn in range(PATIENCE * count):
        asked = study.ask(distributions(space))
        params = {key: _short(value, space.open[key]) for key, value in asked.params.items()}
        if params in tried and turn < (PATIENCE - 1) * count:  # a space may have no more than was tried
            continue
        system = study.get_trials(deepcopy=False)[asked.number].system_attrs
        found.append(Suggestion(params, dict(system)))
        tried.append(params)
        if len(found) == count:
            break
    return found


def _short(value: Any, extent: Between | Among) -> Any:
    """A number with the digits that a person would write; no search tells more of them apart."""
    if isinstance(extent, Among) or not isinstance(value, float):
        return value
    return min(max(float(f"{value:.{DIGITS}g}"), extent.low), extent.high)


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """The open dimensions as Optuna's."""
    found: dict[str, BaseDistribution] = {}
    for key, extent in space.open.items():
        if isinstance(extent, Among):
            found[key] = CategoricalDistribution(extent.values)
        elif extent.whole:
            found[key] = IntDistribution(int(extent.low), int(extent.high), log=extent.log)
        else:
            found[key] = FloatDistribution(extent.low, extent.high, log=extent.log)
    return found


def importance(trials: Sequence[FrozenTrial]) -> dict[str, dict[str, float]]:
    """Share of the spread of old and of new accuracy that each dimension explains; empty for few trials.

    Source: Watanabe et al. 2023 (PED-ANOVA), Optuna's default.
    """
    done = [trial for trial in trials if trial.values is not None]
    if len(done) < 4:
        return {}
    study = optuna.create_study(directions=["maximize", "maximize"])
    study.add_trials(done)
    found = {}
    for row, name in enumerate(("old", "new")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that small targets are meant: hence the negative
            shares = optuna.importance.get_param_importances(study, target=lambda trial, row=row: -trial.values[row])
        found[name] = {key: float(value) for key, value in shares.items()}
    return found
