"""How a search is to be made and what is wanted of it: plain values, each with its meaning. No torch in here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

from taskgraft.config import Range, options
from taskgraft.errors import InputError

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class SearchConfig:
    """Settings of a search; each with its legal values and what it means."""

    sampler: Annotated[str, "grid | tpe | nsga2 | random"] = "tpe"
    points: Annotated[int, Range(2, 9, at_least=1), "of a grid: values of each open interval"] = 5
    trials: Annotated[int, Range(5, 200, at_least=0), "trials, unless a grid; 0 = until the budget is spent"] = 20
    wave: Annotated[int, Range(4, 64, at_least=1), "trials that are asked for and compared together"] = 10
    prune: Annotated[Literal["auto", "yes", "no"], "stop the worse trials early; auto = unless a grid"] = "auto"
    budget: Annotated[str, "stop after so long: 90s, 30m or 2h; empty = no limit"] = ""
    max_trials: Annotated[int, Range(10, 1000, at_least=1), "refuse a grid with more cells"] = 400
    max_forgetting: Annotated[str, "of the choice with the best new task: the most that may be forgotten"] = "1%"
    min_new: Annotated[str, "of the choice that forgets least: the least new accuracy"] = "90%"
    storage: Annotated[str, "postgresql://… for several machines; empty = a journal file in OUT"] = ""
    study: Annotated[str, "the search's name in the storage; empty = OUT's name"] = ""
    no_share: Annotated[bool, "let every trial compute for itself what trials have in common"] = False
    track: Annotated[str, "also tell a tracker: tensorboard | mlflow | wandb"] = ""


@dataclass(frozen=True)
class WorkerConfig:
    """Who works: how many processes, with how many threads each, on this machine or on a Ray cluster."""

    jobs: Annotated[int, Range(1, 8, at_least=1), "worker processes, one a GPU where there are any"] = 1
    threads: Annotated[int, Range(0, 16, at_least=0), "threads of each worker; 0 = the cores shared out"] = 0
    ray: Annotated[str, "work on a Ray cluster: its address, auto, or local"] = ""


class Limits(NamedTuple):
    """A wish's texts as numbers: seconds (None = no limit) and shares."""

    budget: float | None
    max_forgetting: float
    min_new: float


def checked(search_config: SearchConfig, worker_config: WorkerConfig) -> Limits:
    """The numbers that a wish's texts mean; raises TaskgraftError for whatever is not legal in wish or crew."""
    for settings in (search_config, worker_config):
        for name, option in options(type(settings)).items():
            value = getattr(settings, name)
            reason = None if option.kind is str else option.refusal(value)
            if reason:
                raise InputError(f"--{name.replace('_', '-')} {value!r}: {reason}")
    if not search_config.trials and not search_config.budget and search_config.sampler != "grid":
        raise InputError("--trials 0 searches until the budget is spent: give --budget, such as 30m")
    return Limits(
        seconds(search_config.budget),
        share(search_config.max_forgetting, "--max-forgetting"),
        share(search_config.min_new, "--min-new"),
    )


def seconds(text: str) -> float | None:
    """A time such as 90s, 30m or 1.5h in seconds; None for an empty text. Raises TaskgraftError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if not text:
        return None
    if not found or not float(found[1]):
        raise InputError(f"--budget {text!r}: write a time such as 90s, 30m or 2h")
    return float(found[1]) * UNITS[found[2] or "s"]


def share(text: str, flag: str) -> float:
    """A share such as 1% or 0.01; raises TaskgraftError for anything else."""
    try:
        value = float(text.strip().rstrip("%")) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise InputError(f"{flag} {text!r}: write a share such as 1% or 0.01")
    return value
