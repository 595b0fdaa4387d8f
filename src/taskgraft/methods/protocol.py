"""What a method is: up to eight functions that training calls, and settings that declare its traits and add up."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from taskgraft.config import TrainingConfig
from taskgraft.models.classifier import Classifier
from taskgraft.types import Batch, Memory, Params, Quadratic, Step, Terms, TrainingData, Update

Adapt = Callable[[Classifier, TrainingData], Classifier]
Remember = Callable[[Classifier, TrainingData, Memory], Memory]
Mix = Callable[[Batch, Memory, np.random.Generator], Batch]
Response = Callable[[Step, Memory], Terms]
Weight = Callable[[Params, Memory], dict[str, Quadratic]]
Project = Callable[[Params, Memory], Params]
Observe = Callable[[Memory, Update], Memory]
Finish = Callable[[Classifier, Memory, TrainingData], tuple[Classifier, Memory]]


class Method(NamedTuple):
    """The functions of a method: before, during and after training; None where it has none, which costs nothing."""

    adapt: Adapt | None = None  # once, before the optimizer exists: may change the classifier, a copy
    remember: Remember | None = None  # once: (classifier, images, what the parent's bundle carries) -> memory
    mix: Mix | None = None  # each step: data space, adds images to the batch
    response: Response | None = None  # each step: function space, named scalars added to the loss
    weight: Weight | None = None  # each step: weight space, named quadratic penalties
    project: Project | None = None  # each step: restricts how far the parameters move, penalties included
    observe: Observe | None = None  # after each optimizer step: updates the memory
    finish: Finish | None = None  # once: -> classifier and the memory for the next extension


class Traits(NamedTuple):
    """What others must know of a method under its settings, so that nobody outside this package names one."""

    protects: bool = True  # False: plain fine-tuning
    freezes_old: bool = False  # everything inherited is frozen: old logits stay bit-identical
    unfreeze: str = ""  # the setting, if any, under which a method that freezes everything old would not
    attaches: bool = False  # gives the new head features of its own, so the child is no longer one plain backbone
    uses_weights: bool = False  # acts on the inherited weights themselves: penalizes or interpolates them
    replaces_weights: bool = False  # trains something in place of the inherited weights, merged when it finishes
    distills: bool = False  # matches the parent's logits at every step
    needs_old_images: bool = False  # cannot run without a sample of old images, or one that the parent's bundle carries
    records: bool = False  # its `finish` measures what its next use needs, so `train --keep` can record it


@dataclass(frozen=True)
class Settings:
    """Base of a method's hyper-parameters: a frozen dataclass whose fields all have defaults.

    `Ewc(strength=30) + Distill()` is several methods, and `str` gives their notation.
    """

    traits: ClassVar[Traits] = Traits()

    def __add__(self, other: Settings | Sum) -> Sum:
        """Combine with other methods."""
        return Sum((self,)) + other

    def __str__(self) -> str:
        """Return the notation, without the settings that are at their defaults."""
        values = {field: getattr(self, field.name) for field in dataclasses.fields(self)}
        changed = [f"{field.name}={_show_value(value)}" for field, value in values.items() if value != field.default]
        return f"{self.name()}({', '.join(changed)})" if changed else self.name()

    @classmethod
    def name(cls) -> str:
        """Return the method's name in the notation."""
        return cls.__name__.lower()

    def build(self) -> Method:
        """Return the method's functions under these settings."""
        raise NotImplementedError

    @property
    def acts(self) -> bool:
        """Whether the method changes anything: one whose strength is 0 does not."""
        return self.traits.protects and bool(getattr(self, "strength", True))

    def requires(self, config: TrainingConfig) -> str | None:
        """Return why the method cannot run under the training settings and what to do; None where it can."""
        return None

    def note(self, finished: Memory, past: Memory, has_old: bool) -> str | None:
        """Return a sentence for the run's record, or None.

        Args:
            finished: What the method's `finish` returned.
            past: What the parent's bundle carries of this method; empty where it carries nothing.
            has_old: Whether a sample of old images was given.
        """
        return None

    def interpolations(self) -> Mapping[float, Self]:
        """Return settings that differ only in what `finish` does with the trained child, by their weight in (0, 1].

        A search tries them all on one trained child. Empty for methods without such a choice.
        """
        return {}


Plan = dict[str, Settings]  # name -> settings, in the order in which they act


@dataclass(frozen=True)
class Sum:
    """Several methods, in the order in which they act."""

    terms: tuple[Settings, ...]

    def __add__(self, other: Settings | Sum) -> Sum:
        """Combine with other methods, which act after these."""
        if not isinstance(other, Settings | Sum):
            return NotImplemented
        return Sum((*self.terms, *(other.terms if isinstance(other, Sum) else (other,))))

    def __str__(self) -> str:
        """Return the notation."""
        return " + ".join(map(str, self.terms))


MethodLike = str | Settings | Sum  # the notation, or the objects that it describes


def _show_value(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    short = f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return re.sub(r"e\+?(-?)0*", r"e\1", short)  # 1e6, not 1e+06
