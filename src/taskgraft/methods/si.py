"""Synaptic intelligence: hold each weight as strongly as it contributed to lowering the loss in earlier training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch

from taskgraft.config import Implicit, Range
from taskgraft.curvature import path_integral
from taskgraft.errors import InputError
from taskgraft.methods import anchored
from taskgraft.methods.protocol import Method, Settings, Traits
from taskgraft.models.classifier import Classifier, inherited_parameters, old_class_counts
from taskgraft.types import Memory, Params, Quadratic, TrainingData, Update


@dataclass(frozen=True)
class Si(Settings):
    """Pull each weight towards the parent's in proportion to its contribution to earlier training (Zenke et al. 2017).

    (strength / 2) sum_j Omega_j (theta_j - parent_j)^2, Omega_j = sum over tasks of the path integral of -gradient *
    movement, divided by (total movement)^2 + damping, and not below 0; the paper's c is strength / 2. The path of
    earlier training must have been recorded: `train --keep si`, or an extension with si. A foreign
    checkpoint has no such record; si(strength=0) records one for the next extension.
    """

    traits = Traits(uses_weights=True, records=True)

    strength: Annotated[float, Range(1e-2, 1e4, log=True, at_least=0)] = 2.0
    damping: Annotated[float, Range(1e-4, 1.0, log=True, above=0)] = 0.1
    implicit: Implicit = "auto"

    def build(self) -> Method:
        """Use `remember`, `weight`, `observe` (the path) and `finish` (the importance for the next extension)."""

        def remember(classifier: Classifier, sources: TrainingData, past: Memory) -> Memory:
            trainable = {name: value for name, value in classifier.named_parameters() if value.requires_grad}
            start = {name: value.detach().clone() for name, value in trainable.items()}
            memory: Memory = {"start": start, "path": {name: torch.zeros_like(v) for name, v in start.items()}}
            recorded: Params = past.get("importance", {})
            names = [name for name in inherited_parameters(classifier) if name in recorded]
            missing = [name for name in inherited_parameters(classifier) if name not in recorded]
            if missing and self.strength and old_class_counts(classifier):
                raise InputError(
                    "si needs the recorded path of earlier training, which this parent lacks "
                    f"(for {missing[0]!r}); train it with train --keep si, use ewc or mas, or start recording with "
                    "si(strength=0)"
                )
            return memory | {
                "anchor": {name: start[name].clone() for name in names},
                "importance": {name: torch.empty_like(start[name]).copy_(recorded[name]) for name in names},
            }

        def weight(params: Params, memory: Memory) -> dict[str, Quadratic]:
            return {"si": Quadratic(*anchored.anchor_and_importance(memory), self.strength, self.implicit)}

        def observe(memory: Memory, update: Update) -> Memory:
            path_integral.add_to_path(memory["path"], update)
            return memory

        def finish(classifier: Classifier, memory: Memory, sources: TrainingData) -> tuple[Classifier, Memory]:
            now = dict(classifier.named_parameters())
            importance = path_integral.path_importance(memory["path"], memory["start"], now, self.damping)
            for name in importance:
                importance[name] += memory.get("importance", {}).get(name, 0.0)
            return classifier, {"importance": importance}

        return Method(remember=remember, weight=weight, observe=observe, finish=finish)
