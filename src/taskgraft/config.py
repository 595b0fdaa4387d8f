"""What a user may set, and which values are legal. No torch in here: help texts are made from it."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from taskgraft.errors import InputError

Softmax = Literal["per-task", "joint"]
Precision = Literal["auto", "fp32", "fp32-channels-last", "bf16"]
DEFAULT_METHOD = "branch"  # by the evidence in docs/choosing.md
LARGEST = sys.float_info.max  # also refuses NaN, infinities, and whole numbers that no float can hold
Implicit = Literal["auto", True, False]
Augment = Literal["none", "shift", "shift+flip", "crop+flip"]


class Range(NamedTuple):
    """A hyper-parameter's interval: `low`..`high` is searched (`log` says on which scale).

    Legal is everything from `at_least` on, or everything over `above`; neither means from `low` on; up to `at_most`.
    `searched` tells whether a search leaves it open by itself: what only sharpens a measurement is not.
    """

    low: float
    high: float
    log: bool = False
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    searched: bool = True

    def allows(self, value: float) -> bool:
        """Whether a value is legal."""
        if self.at_most is not None and value > self.at_most:
            return False
        if self.above is not None:
            return value > self.above
        return value >= (self.low if self.at_least is None else self.at_least)

    def rule(self) -> str:
        """The legal and the usual values in words."""
        bound = f"at least {self.low if self.at_least is None else self.at_least:g}"
        bound = bound if self.above is None else f"above {self.above:g}"
        bound = bound if self.at_most is None else f"{bound} and at most {self.at_most:g}"
        return f"must be {bound} (usual values: {self.low:g} to {self.high:g})"


@dataclass(frozen=True)
class TrainingConfig:
    """Settings common to all methods; each with its legal values and what it means."""

    steps: Annotated[int, Range(100, 10000, log=True, at_least=1), "steps of training"] = 1200
    batch_size: Annotated[int, Range(8, 256, log=True, at_least=1), "images a step"] = 32
    lr: Annotated[float, Range(1e-4, 1e-1, log=True, above=0), "learning rate"] = 0.001
    optimizer: Annotated[Literal["sgd", "adamw"], "optimizer"] = "adamw"
    momentum: Annotated[float, Range(0, 0.99, at_least=0, at_most=0.9999), "momentum of sgd"] = 0.9
    weight_decay: Annotated[
        float, Range(0, 0.1, at_least=0), "weight decay; pulls old weights away from the parent"
    ] = 0.0
    schedule: Annotated[Literal["cosine", "constant"], "course of the rate over the steps"] = "cosine"
    warmup_steps: Annotated[int, Range(0, 1000, at_least=0), "steps over which the rate rises from 0"] = 0
    head_steps: Annotated[int, Range(0, 1000, at_least=0), "steps of the new head alone before, on cached features"] = (
        200
    )
    clip_grad: Annotated[float, Range(0, 10, at_least=0), "largest norm of the gradient; 0 = no limit"] = 1.0
    norm: Annotated[Literal["train", "frozen"], "BatchNorm's statistics move with the new images, or stay"] = "train"
    softmax: Annotated[Softmax, "one softmax a task, or one over all (to reproduce; forgets)"] = "per-task"
    precision: Annotated[Precision, "arithmetic; auto times each once on this machine"] = "auto"
    micro_batches: Annotated[
        int,
        Range(1, 64, at_least=1, searched=False),
        "pieces a batch goes through in; doubled when memory runs out",
    ] = 1
    views: Annotated[int, Range(1, 64, at_least=0), "fixed views of each image; 0 = new ones every epoch"] = 8
    augment: Annotated[Augment, "how views differ from the image"] = "shift+flip"
    eval_every: Annotated[int, Range(1, 1000, at_least=1), "steps between validations"] = 50
    log_every: Annotated[int, Range(1, 1000, at_least=1), "steps between logged losses"] = 50
    save_every: Annotated[int, Range(1, 10000, at_least=1), "steps between checkpoints"] = 100
    seed: Annotated[int, Range(0, 2**32, at_least=0), "every random number derives from it"] = 0


# For a classifier trained from random weights: Adam's rate, decay, and views that never repeat.
TRAIN_DEFAULTS = TrainingConfig(
    steps=600,
    optimizer="adamw",
    lr=0.001,
    weight_decay=0.01,
    warmup_steps=50,
    head_steps=0,
    views=0,
    eval_every=100,
    log_every=50,
    save_every=200,
)


def lr_at(config: TrainingConfig, step: int) -> float:
    """The learning rate of a step: a formula of the step, so that nothing has to be stored."""
    rising = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    falling = 0.5 * (1 + math.cos(math.pi * step / config.steps)) if config.schedule == "cosine" else 1.0
    return config.lr * rising * falling


class Option(NamedTuple):
    """A setting as declared: its plain type, legal values, meaning and default."""

    kind: Any
    extent: Range | None
    meaning: str
    default: Any

    def refusal(self, value: Any) -> str | None:
        """Why a value is not legal; None where it is."""
        if get_origin(self.kind) is Literal:
            known = get_args(self.kind)  # 1 == True, but is another value
            fits = any(value == one and type(value) is type(one) for one in known)
            return None if fits else f"give one of {', '.join(map(str, known))}"
        if self.kind is bool:
            return None if isinstance(value, bool) else "give True or False"
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST:
            return f"give a number such as {self.default}"
        if self.kind is int and value != int(value):
            return "give a whole number"
        return None if self.extent is None or self.extent.allows(value) else self.extent.rule()


def options(settings: type) -> dict[str, Option]:
    """Each field of a dataclass of settings, in order."""
    found = {}
    for name, hint in get_type_hints(settings, include_extras=True).items():
        kind, *extras = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        extent = next((extra for extra in extras if isinstance(extra, Range)), None)
        meaning = next((extra for extra in extras if isinstance(extra, str)), "")
        found[name] = Option(kind, extent, meaning, settings.__dataclass_fields__[name].default)
    return found


def validate(config: TrainingConfig) -> TrainingConfig:
    """The run itself when every setting is legal; raises TaskgraftError naming the setting otherwise."""
    for name, option in options(TrainingConfig).items():
        reason = option.refusal(getattr(config, name))
        if reason:
            raise InputError(f"{name} {getattr(config, name)!r}: {reason}")
    return config
