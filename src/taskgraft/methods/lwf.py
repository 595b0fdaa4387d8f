"""Learning without forgetting as published."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch

from taskgraft import data, losses, pytree
from taskgraft.config import Range, TrainingConfig
from taskgraft.methods.protocol import Method, Settings, Traits
from taskgraft.models.classifier import Classifier
from taskgraft.types import MIXED_IN, Memory, Step, Terms, TrainingData


@dataclass(frozen=True)
class Lwf(Settings):
    """Train the new head first, then everything with distillation on the new images (Li and Hoiem 2016).

    strength * sum over old tasks of mean_i KL(parent / T || child / T), without the factor T^2, T = 2. The head-only
    steps are the run's `--head-steps`. `distill` is the same idea with recorded logits and a
    gradient whose size does not depend on T.
    """

    traits = Traits(distills=True)

    strength: Annotated[float, Range(1e-2, 1e2, log=True, at_least=0)] = 1.0
    temperature: Annotated[float, Range(1, 8, above=0)] = 2.0

    def requires(self, config: TrainingConfig) -> str | None:
        """Require head-only steps: the published procedure trains the new head first."""
        if config.head_steps:
            return None
        return "lwf trains the new head alone first: set --head-steps to 1 or more, or use distill"

    def build(self) -> Method:
        """Use `remember` (the parent) and `response`."""

        def remember(classifier: Classifier, sources: TrainingData, past: Memory) -> Memory:
            return {"parent": pytree.state(classifier)}

        def response(step: Step, memory: Memory) -> Terms:
            if not step.old and not step.teach:
                return {}
            taught = step.batch.rows != MIXED_IN
            teacher = step.teach(taught) if step.teach else step.predict(memory["parent"], taught)
            widths = {task: logits.shape[1] for task, logits in teacher.items()} if step.teach else step.old
            student = {task: data.take(step.outputs[task], taught)[:, :width] for task, width in widths.items()}
            terms = [
                losses.distillation(student[task], teacher[task][:, :width], self.temperature, "none")
                for task, width in widths.items()
            ]
            return {"lwf": self.strength * torch.stack(terms).sum()}

        return Method(remember=remember, response=response)
