"""Training settings, their legal values and help texts. Imports no torch, so that `--help` stays fast."""

from __future__ import annotations

import math
import re
import sys
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from taskgraft.errors import InputError

Softmax = Literal["per-task", "joint"]
Precision = Literal["auto", "fp32", "fp32-channels-last", "bf16"]
FisherPrecision = Literal["auto", "tf32", "fp32"]
Implicit = Literal["auto", True, False]
Augment = Literal["none", "shift", "shift+flip", "crop+flip", "resized-crop+flip", "randaugment"]
LARGEST = sys.float_info.max  # also refuses NaN, infinities, and integers that no float can hold
UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}  # seconds


class Range(NamedTuple):
    """Interval of a numeric hyperparameter.

    Attributes:
        low: Lower end of the typical range, which a search explores.
        high: Upper end of the typical range.
        log: Whether a search samples on a logarithmic scale.
        at_least: Smallest legal value; `low` if neither this nor `above` is set.
        above: Exclusive lower bound of the legal values.
        at_most: Largest legal value.
        searched: Whether a search includes this setting by default.
    """

    low: float
    high: float
    log: bool = False
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    searched: bool = True

    @property
    def minimum(self) -> float:
        """Smallest legal value where there is no exclusive bound."""
        return self.low if self.at_least is None else self.at_least

    def allows(self, value: float) -> bool:
        """Return whether a value is legal."""
        if self.at_most is not None and value > self.at_most:
            return False
        return value >= self.minimum if self.above is None else value > self.above

    def rule(self) -> str:
        """Return the legal and the usual values in words."""
        bound = f"at least {self.minimum:g}" if self.above is None else f"above {self.above:g}"
        bound += "" if self.at_most is None else f" and at most {self.at_most:g}"
        return f"must be {bound} (usual values: {self.low:g} to {self.high:g})"


# A field of the dataclasses below, and of those in other modules that become flags, is declared as
#     name: Annotated[type, Range(...)] = field(default=..., metadata={"help": "one line"})


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of a training run, common to all methods. `help` in each field's metadata describes it."""

    steps: Annotated[int, Range(100, 10000, log=True, at_least=1)] = field(
        default=1200, metadata={"help": "Number of training steps"}
    )
    epochs: Annotated[float, Range(1, 100, at_least=0, searched=False)] = field(
        default=0.0, metadata={"help": "Passes over the training images, instead of a number of steps; 0 = none"}
    )
    batch_size: Annotated[int, Range(8, 256, log=True, at_least=1)] = field(
        default=32, metadata={"help": "Images per step"}
    )
    lr: Annotated[float, Range(1e-4, 1e-1, log=True, above=0)] = field(
        default=0.001, metadata={"help": "Peak learning rate"}
    )
    optimizer: Literal["sgd", "adamw"] = field(default="adamw", metadata={"help": "Optimizer"})
    momentum: Annotated[float, Range(0, 0.99, at_least=0, at_most=0.9999)] = field(
        default=0.9, metadata={"help": "Momentum of SGD"}
    )
    weight_decay: Annotated[float, Range(0, 0.1, at_least=0)] = field(
        default=0.0, metadata={"help": "Weight decay; moves old weights away from the parent"}
    )
    schedule: Literal["cosine", "constant"] = field(default="cosine", metadata={"help": "Learning-rate schedule"})
    warmup_steps: Annotated[int, Range(0, 1000, at_least=0)] = field(
        default=0, metadata={"help": "Steps of linear learning-rate warm-up"}
    )
    head_steps: Annotated[int, Range(0, 1000, at_least=0)] = field(
        default=200, metadata={"help": "Head-only steps on cached features before full training (linear probing)"}
    )
    clip_grad: Annotated[float, Range(0, 10, at_least=0)] = field(
        default=1.0, metadata={"help": "Gradient-clipping norm; 0 disables clipping"}
    )
    norm: Literal["train", "frozen"] = field(
        default="train", metadata={"help": "Update or freeze BatchNorm running statistics"}
    )
    softmax: Softmax = field(
        default="per-task",
        metadata={"help": "One softmax per task, or a joint one over all classes (for reproduction; it forgets)"},
    )
    precision: Precision = field(
        default="auto", metadata={"help": "Numeric precision and memory format; auto benchmarks them on this machine"}
    )
    deterministic: bool = field(
        default=False, metadata={"help": "Use slower, deterministic kernels on a GPU; a CPU has no others"}
    )
    compile: Literal["off", "auto", "default", "reduce-overhead", "max-autotune"] = field(
        default="off",
        metadata={"help": "Train through torch.compile in this mode; auto: on a GPU, if that is faster"},
    )
    fisher_precision: FisherPrecision = field(
        default="auto",
        metadata={"help": "Precision of EWC's and MAS's sums of products; auto = tf32 on a GPU with tensor cores"},
    )
    micro_batches: Annotated[int, Range(1, 64, at_least=1, searched=False)] = field(
        default=1,
        metadata={"help": "Micro-batches per step (gradient accumulation); doubled when memory runs out"},
    )
    views: Annotated[int, Range(1, 64, at_least=0)] = field(
        default=8, metadata={"help": "Fixed augmented copies per image; 0 = fresh augmentation every epoch"}
    )
    augment: Augment = field(
        default="shift+flip", metadata={"help": "Data augmentation; randaugment = shift+flip and two random operations"}
    )
    label_smoothing: Annotated[float, Range(0, 0.2, at_least=0, at_most=0.99, searched=False)] = field(
        default=0.0, metadata={"help": "Fraction of a label that is spread over all classes"}
    )
    class_weights: Literal["none", "balanced"] = field(
        default="none", metadata={"help": "Weights of classes in the loss; balanced = by the inverse of their images"}
    )
    mixup: Annotated[float, Range(0, 1, at_least=0, at_most=100, searched=False)] = field(
        default=0.0, metadata={"help": "Blend pairs of images and labels by shares from Beta(mixup, mixup); 0 = off"}
    )
    cutmix: Annotated[float, Range(0, 1, at_least=0, at_most=100, searched=False)] = field(
        default=0.0, metadata={"help": "Paste pieces into images, with shares from Beta(cutmix, cutmix); 0 = off"}
    )
    layer_decay: Annotated[float, Range(0.5, 1, above=0, at_most=1, searched=False)] = field(
        default=1.0, metadata={"help": "Factor of the learning rate from each layer to the one below; 1 = off"}
    )
    ema: Annotated[float, Range(0.9, 0.9999, at_least=0, at_most=0.999999, searched=False)] = field(
        default=0.0, metadata={"help": "Evaluate and keep a moving average of the weights with this decay; 0 = off"}
    )
    eval_every: Annotated[int, Range(1, 1000, at_least=1)] = field(
        default=50, metadata={"help": "Steps between evaluations on the validation images"}
    )
    patience: Annotated[int, Range(0, 100, at_least=0, searched=False)] = field(
        default=0,
        metadata={"help": "Early stopping: evaluations without a better mean accuracy before the run ends; 0 = never"},
    )
    log_every: Annotated[int, Range(1, 1000, at_least=1)] = field(
        default=50, metadata={"help": "Steps between logged losses"}
    )
    save_every: Annotated[int, Range(1, 10000, at_least=1)] = field(
        default=100, metadata={"help": "Steps between checkpoints"}
    )
    seed: Annotated[int, Range(0, 2**32, at_least=0)] = field(default=0, metadata={"help": "Random seed"})


# Defaults of `train`, which starts from random weights: Adam with weight decay, and augmentation that never repeats.
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

# So many classes added to an old task teach a side network to tell them from others too (docs/decisions.md, 160).
MANY_ADDED = 5

# Defaults of `compress` and `merge`: every step shows views that were never shown before, the weights move little, and
# no head is trained on labels first: a teacher's logits are matched, which labels would make larger.
COMPRESSION_DEFAULTS = TrainingConfig(
    steps=1500,
    lr=4e-4,
    warmup_steps=50,
    head_steps=0,
    norm="frozen",
    views=0,
    augment="resized-crop+flip",
    eval_every=100,
)

# Defaults of `refresh`: the head is there already, and the weights move little.
REFRESH_DEFAULTS = TrainingConfig(steps=300, lr=3e-4, warmup_steps=20, head_steps=0, norm="frozen", views=0)


def resolve_steps(config: TrainingConfig, images: int, batch_size: int) -> TrainingConfig:
    """Replace the steps by those that the epochs come to, where epochs are set; at least one, rounded up.

    Args:
        config: Training settings.
        images: Number of training images.
        batch_size: How many of them a step takes.
    """
    if not config.epochs:
        return config
    steps = math.ceil(config.epochs * images / batch_size - 1e-9)  # 0.1 * 300 / 10 is a little above 3
    return replace(config, steps=max(1, steps))


def lr_at(config: TrainingConfig, step: int) -> float:
    """Return the learning rate after `step` completed steps; a function of the step, so that no checkpoint stores it.

    Linear warm-up times the schedule (cosine annealing, Loshchilov & Hutter 2017, eq. 5, without restarts).
    """
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    decay = 0.5 * (1 + math.cos(math.pi * step / config.steps)) if config.schedule == "cosine" else 1.0
    return config.lr * warmup * decay


class Option(NamedTuple):
    """A setting as its dataclass declares it.

    Attributes:
        kind: Plain type: int, float, bool, str or a Literal.
        range: Range of a number, None for other types.
        help: One-line description, "" where there is none.
        default: Default value.
    """

    kind: Any
    range: Range | None
    help: str
    default: Any

    def violation(self, value: Any) -> str | None:
        """Return why a value is illegal, or None if it is legal."""
        if get_origin(self.kind) is Literal:
            choices = get_args(self.kind)
            allowed = any(value == choice and type(value) is type(choice) for choice in choices)  # 1 == True
            return None if allowed else f"give one of {', '.join(map(str, choices))}"
        if self.kind is bool:
            return None if isinstance(value, bool) else "give True or False"
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST:
            return f"give a number such as {self.default}"
        if self.kind is int and value != int(value):
            return "give a whole number"
        return None if self.range is None or self.range.allows(value) else self.range.rule()


def options(settings: type) -> dict[str, Option]:
    """Return the settings, by name, of a dataclass whose fields are annotated as those of `TrainingConfig`."""
    hints = get_type_hints(settings, include_extras=True)
    declared = {}
    for item in fields(settings):
        hint = hints[item.name]
        kind, *annotations = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        bounds = next((annotation for annotation in annotations if isinstance(annotation, Range)), None)
        declared[item.name] = Option(kind, bounds, item.metadata.get("help", ""), item.default)
    return declared


def parse_duration(text: str, flag: str) -> float:
    """Convert a positive duration such as 40ms, 90s, 30m or 1.5h to seconds.

    Raises:
        InputError: The text is not a duration; the message names `flag`.
    """
    match = re.fullmatch(r"(.*?)(ms|s|m|h)?", text.strip())
    try:
        seconds = float(match[1]) * UNITS[match[2] or "s"] if match else math.nan
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise InputError(f"{flag} {text!r} is not a duration; write for example 40ms, 90s, 30m or 2h")
    return seconds


def validate(config: TrainingConfig, defaults: TrainingConfig = TrainingConfig()) -> TrainingConfig:
    """Check that every setting is legal.

    Args:
        config: Training settings.
        defaults: The settings that apply where nothing is set.

    Returns:
        The same config.

    Raises:
        InputError: A value is illegal, or two settings contradict each other; the message names them and the rule.
    """
    for name, option in options(TrainingConfig).items():
        reason = option.violation(getattr(config, name))
        if reason:
            raise InputError(f"{name} {getattr(config, name)!r}: {reason}")
    if config.epochs and config.steps != defaults.steps:
        raise InputError(f"steps {config.steps} and epochs {config.epochs:g}: give one of them")
    return config
