"""Settings of a hyperparameter search and their checks. Imports no torch, so that `--help` stays fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal, NamedTuple

from taskgraft.config import Range, options, parse_duration
from taskgraft.errors import InputError


@dataclass(frozen=True)
class SearchConfig:
    """Settings of a hyperparameter search. `help` in each field's metadata describes it."""

    sampler: str = field(default="tpe", metadata={"help": "Search algorithm: grid, tpe, nsga2 or random"})
    points: Annotated[int, Range(2, 9, at_least=1)] = field(default=5, metadata={"help": "Grid points per range"})
    trials: Annotated[int, Range(5, 200, at_least=0)] = field(
        default=20, metadata={"help": "Number of trials, except for a grid; 0 = until --budget is spent"}
    )
    wave: Annotated[int, Range(4, 64, at_least=1)] = field(
        default=10, metadata={"help": "Trials per wave; a wave is sampled and compared as a whole"}
    )
    prune: Literal["auto", "yes", "no"] = field(
        default="auto", metadata={"help": "Stop unpromising trials early; auto = unless --sampler grid"}
    )
    budget: str = field(default="", metadata={"help": "Time limit such as 90s, 30m or 2h"})
    max_trials: Annotated[int, Range(10, 1000, at_least=1)] = field(
        default=400, metadata={"help": "Refuse grids with more points than this"}
    )
    max_forgetting: str = field(
        default="1%", metadata={"help": "Forgetting allowed in the selected model with the best new-task accuracy"}
    )
    min_new: str = field(
        default="90%", metadata={"help": "New-task accuracy required of the selected model with the least forgetting"}
    )
    storage: str = field(
        default="", metadata={"help": "postgresql://... URL of a database; the default is a journal file in OUT"}
    )
    study: str = field(default="", metadata={"help": "Name of the study in the storage; the default is OUT's name"})
    no_share: bool = field(default=False, metadata={"help": "Do not reuse computation across trials"})
    track: str = field(default="", metadata={"help": "Also log to tensorboard, mlflow or wandb"})


@dataclass(frozen=True)
class WorkerConfig:
    """Worker processes of a search, on this machine or on a Ray cluster."""

    jobs: Annotated[int, Range(1, 8, at_least=1)] = field(
        default=1, metadata={"help": "Worker processes, one per GPU if there are any"}
    )
    threads: Annotated[int, Range(0, 16, at_least=0)] = field(
        default=0, metadata={"help": "Threads per worker; 0 = all cores divided by the workers"}
    )
    ray: str = field(default="", metadata={"help": "Run on a Ray cluster: its address, auto or local"})


class Limits(NamedTuple):
    """The textual settings of a `SearchConfig` as numbers.

    Attributes:
        budget: Time limit in seconds, or None.
        max_forgetting: Fraction in [0, 1].
        min_new: Fraction in [0, 1].
    """

    budget: float | None
    max_forgetting: float
    min_new: float


def validate(search_config: SearchConfig, worker_config: WorkerConfig) -> Limits:
    """Check all settings of a search.

    Returns:
        The textual settings as numbers.

    Raises:
        InputError: a value is not legal.
    """
    for settings in (search_config, worker_config):
        for name, option in options(type(settings)).items():
            value = getattr(settings, name)
            reason = None if option.kind is str else option.violation(value)
            if reason:
                raise InputError(f"--{name.replace('_', '-')} {value!r}: {reason}")
    if not search_config.trials and not search_config.budget and search_config.sampler != "grid":
        raise InputError("--trials 0 searches until the budget is spent; set --budget, for example 30m")
    return Limits(
        parse_duration(search_config.budget, "--budget") if search_config.budget else None,
        parse_fraction(search_config.max_forgetting, "--max-forgetting"),
        parse_fraction(search_config.min_new, "--min-new"),
    )


def parse_fraction(text: str, flag: str) -> float:
    """Convert a fraction such as 1% or 0.01 to a number in [0, 1]; `flag` is for the message of an InputError."""
    try:
        value = float(text.strip().rstrip("%")) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise InputError(f"{flag} {text!r} is not a fraction; write 1% or 0.01")
    return value
