"""Sampling of hyperparameters by Optuna, one wave at a time.

Each wave is sampled in a fresh study in memory that holds the trials of earlier waves, with a seed of its own. A wave
is therefore a function of the earlier results: neither workers nor interruptions change it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, create_trial

from taskgraft import seeding
from taskgraft.errors import InputError
from taskgraft.results.search import TrialResult
from taskgraft.tuning.space import Choices, Params, Space, ValueRange

SAMPLERS = ("tpe", "nsga2", "random")  # besides "grid"
SINGLE_OBJECTIVE = ("cmaes", "gp", "qmc")  # Optuna's, but a search maximizes old and new accuracy
DIGITS = 3  # significant digits of sampled numbers
MAX_REPEATS = 10  # times that a sampler may repeat itself before a trial is accepted twice


class Suggestion(NamedTuple):
    """Sampled hyperparameters and the sampler's own notes on them."""

    params: Params
    system_attrs: dict[str, Any]


def check_sampler(name: str) -> None:
    """Raise InputError for a sampler that does not exist or that supports a single objective only."""
    available = f"available: grid, {', '.join(SAMPLERS)}"
    if name in SINGLE_OBJECTIVE:
        raise InputError(f"--sampler {name} supports one objective, but a search has two; {available}")
    if name != "grid" and name not in SAMPLERS:
        raise InputError(f"--sampler {name!r} does not exist; {available}")


def suggest(
    space: Space, sampler: str, past: Sequence[FrozenTrial], wave: int, count: int, seed: int, wave_size: int
) -> list[Suggestion]:
    """Sample the trials of a wave.

    Args:
        space: Search space.
        sampler: One of `SAMPLERS`.
        past: Finished trials of the earlier waves, in order.
        wave: Number of the wave.
        count: How many trials to sample; the first ones do not depend on it.
        seed: Seed of the search.
        wave_size: Number of trials of a full wave.

    Returns:
        `count` suggestions. Parameters are repeated only where the space has no more to offer.
    """
    study = optuna.create_study(
        directions=["maximize", "maximize"],
        sampler=_build_sampler(sampler, seeding.derive(seed, "wave", wave) % 2**32, wave_size),
    )
    study.add_trials(past)
    dimensions = to_distributions(space)
    suggestions: list[Suggestion] = []
    tried = [trial.params for trial in past]
    for attempt in range(MAX_REPEATS * count):
        trial = study.ask(dimensions)
        params = {key: _round(value, space.dimensions[key]) for key, value in trial.params.items()}
        if params in tried and attempt < (MAX_REPEATS - 1) * count:
            continue
        system_attrs = study.get_trials(deepcopy=False)[trial.number].system_attrs
        suggestions.append(Suggestion(params, dict(system_attrs)))
        tried.append(params)
        if len(suggestions) == count:
            break
    return suggestions


def _build_sampler(name: str, seed: int, wave_size: int) -> BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if name == "tpe":
            return TPESampler(seed=seed, multivariate=True, constant_liar=True, n_startup_trials=wave_size)
        if name == "nsga2":
            return NSGAIISampler(seed=seed, population_size=max(2, wave_size))
        return RandomSampler(seed=seed)


def _round(value: Any, dimension: ValueRange | Choices) -> Any:
    """Round a number to the digits that a person would write, within its range."""
    if isinstance(dimension, Choices) or not isinstance(value, float):
        return value
    return min(max(float(f"{value:.{DIGITS}g}"), dimension.low), dimension.high)


def to_distributions(space: Space) -> dict[str, BaseDistribution]:
    """Convert the dimensions of a space to Optuna's distributions."""
    distributions: dict[str, BaseDistribution] = {}
    for key, dimension in space.dimensions.items():
        if isinstance(dimension, Choices):
            distributions[key] = CategoricalDistribution(dimension.values)
        elif dimension.integer:
            distributions[key] = IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
        else:
            distributions[key] = FloatDistribution(dimension.low, dimension.high, log=dimension.log)
    return distributions


def compute_importance(space: Space, trials: Sequence[TrialResult]) -> dict[str, dict[str, float]]:
    """Compute how much of the variation of old and of new accuracy each hyperparameter explains.

    Source: Watanabe et al. 2023 (PED-ANOVA), Optuna's default.

    Returns:
        "old" and "new" -> hyperparameter -> fraction in [0, 1]; empty for fewer than four measured trials.
    """
    measured = [trial for trial in trials if trial.old is not None and trial.new is not None]
    if len(measured) < 4:
        return {}
    study = optuna.create_study(directions=["maximize", "maximize"])
    for trial in measured:
        values = [trial.old or 0.0, trial.new or 0.0]
        study.add_trial(create_trial(params=trial.params, distributions=to_distributions(space), values=values))
    importance = {}
    for index, name in enumerate(("old", "new")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # it warns that small targets count: hence the negative
            values = optuna.importance.get_param_importances(study, target=lambda trial, i=index: -trial.values[i])
        importance[name] = {key: float(value) for key, value in values.items()}
    return importance
