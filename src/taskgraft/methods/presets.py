"""The methods that taskgraft chooses or suggests by itself, as notations. No torch in here: help texts use them."""

from __future__ import annotations

from typing import NamedTuple

DEFAULT_METHOD = "branch"  # by the evidence in docs/choosing.md
INTO_FEW = "frozen"  # where few classes are added to an old task: by the evidence in docs/methods.md
INTO_MANY = "branch"  # where config.MANY_ADDED or more are
BASELINE = "finetune"  # protects nothing: what every other method is compared with
BASELINE_LABEL = "baseline"  # how tables and charts call it
SINGLE_BACKBONE = "distill"  # suggested where the child must remain a plain network
COMPRESSION = "distill(strength=12, teacher=live, loss=logits, blend=0.5)"  # how `compress` teaches one backbone
REFRESH = "distill(strength=0.3) + wise"  # how `refresh` learns new images of a task: docs/using.md
REFRESH_UNMEASURED = "distill(strength=0.3)"  # where no old image can choose how far to go back
SEARCHED = "distill + wise"  # what `tune` searches when no method is given
COMPARED = (BASELINE, "distill", DEFAULT_METHOD)  # what `compare` compares when no methods are given

EXAMPLE = "ewc(strength=30) + distill"  # for help texts and error messages
EXAMPLE_METHOD = "ewc"
RANGE_EXAMPLE = "ewc(strength=10..1000)"
VALUES_EXAMPLE = "distill(strength=[0.3, 1, 3])"
RECORDERS = ("ewc", "mas", "si")  # those whose trait `records` holds: what `train --keep` accepts

# Each way of keeping the old task that needs no old image, and the learning rates that `--method auto` tries with each.
AUTO_PORTFOLIO = (
    "branch",
    "ladder",
    "taps",
    "distill(strength=4) + wise",
    "taps(backbone=trained) + distill(strength=4) + wise",
    "distill + ewc",
)
AUTO_LRS = (3e-4, 1e-3, 3e-3)

EXTRAS = {"lora": ("peft",)}  # pip extra of a method -> the packages that it imports


class Preset(NamedTuple):
    """A row of the reference experiment: its label, its method in the notation, and its learning rate."""

    label: str
    method: str
    lr: float


# Distillation at its default. EWC's strengths were chosen among 1e3, 1e4, 3e4 and 1e5 with seed 0 and other drawings.
REFERENCE = (
    Preset("baseline", "finetune", 1e-3),
    Preset("EWC", "ewc(strength=3e4)", 1e-3),
    Preset("distillation", "distill", 1e-3),
    Preset("baseline (low rate)", "finetune", 1e-4),
    Preset("EWC (low rate)", "ewc(strength=1e4)", 1e-4),
    Preset("distillation (low rate)", "distill", 1e-4),
)


def is_baseline(method: str) -> bool:
    """Whether a notation is plain fine-tuning, alone.

    Args:
        method: A method in the notation, as records store it.
    """
    return method.replace("()", "").strip() in (BASELINE, BASELINE_LABEL)


def label(method: str) -> str:
    """Return how tables and charts call a method: its notation, or "baseline" for plain fine-tuning."""
    return BASELINE_LABEL if is_baseline(method) else method


def alternative(method: str) -> str:
    """Return the method to try next after `method`: the default, or a single backbone where that was used."""
    return SINGLE_BACKBONE if DEFAULT_METHOD in method else DEFAULT_METHOD
