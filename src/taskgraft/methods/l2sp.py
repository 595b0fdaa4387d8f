"""L2-SP: hold every inherited weight equally strongly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from taskgraft.config import Implicit, Range
from taskgraft.methods.protocol import Method, Settings, Traits
from taskgraft.models.classifier import Classifier, inherited_parameters
from taskgraft.types import Memory, Params, Quadratic, TrainingData


@dataclass(frozen=True)
class L2sp(Settings):
    """Pull every inherited weight towards the parent's with equal force (Li, Grandvalet, Davoine 2018).

    (strength / 2) sum_j (theta_j - parent_j)^2; the paper's alpha is strength. Needs no images.
    """

    traits = Traits(uses_weights=True)

    strength: Annotated[float, Range(1e-1, 1e3, log=True, at_least=0)] = 30.0
    implicit: Implicit = "auto"

    def build(self) -> Method:
        """Use `remember` (the anchor) and `weight`."""

        def remember(classifier: Classifier, sources: TrainingData, past: Memory) -> Memory:
            return {
                "anchor": {name: value.detach().clone() for name, value in inherited_parameters(classifier).items()}
            }

        def weight(params: Params, memory: Memory) -> dict[str, Quadratic]:
            return {"l2sp": Quadratic(memory["anchor"], None, self.strength, self.implicit)}

        return Method(remember=remember, weight=weight)
