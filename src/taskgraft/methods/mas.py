"""Memory aware synapses: hold each weight as strongly as the norm of the outputs depends on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from taskgraft.config import Implicit, Range
from taskgraft.curvature import fisher
from taskgraft.methods import anchored
from taskgraft.methods.anchored import Measure
from taskgraft.methods.protocol import Method, Settings, Traits
from taskgraft.models.classifier import Classifier
from taskgraft.models.inference import image_reader, sample_evenly
from taskgraft.types import Images, Memory, Params, Quadratic, TrainingData


@dataclass(frozen=True)
class Mas(Settings):
    """Pull each weight towards the parent's in proportion to the outputs' sensitivity to it (Aljundi et al. 2018).

    (strength / 2) sum_j Omega_j (theta_j - parent_j)^2 with Omega_j = mean_i |d ||z(x_i)||^2 / d theta_j|; the paper's
    lambda is strength / 2. Needs no labels; uses the new images if there is no old sample.
    """

    traits = Traits(uses_weights=True, records=True)

    strength: Annotated[float, Range(1e-3, 1e3, log=True, at_least=0)] = 1.0
    images: Annotated[int, Range(64, 65536, at_least=1, searched=False)] = 1024
    implicit: Implicit = "auto"

    def build(self) -> Method:
        """Use `remember` (anchor and sensitivity), `weight` and `finish` (the sensitivity for the next extension)."""

        def remember(classifier: Classifier, sources: TrainingData, past: Memory) -> Memory:
            name = f"{classifier.softmax} sensitivity of {self.images} images"
            return anchored.anchor_weights(classifier, sources, past, self._sensitivity(classifier, sources), name)

        def weight(params: Params, memory: Memory) -> dict[str, Quadratic]:
            return {"mas": Quadratic(*anchored.anchor_and_importance(memory), self.strength, self.implicit)}

        def finish(classifier: Classifier, memory: Memory, sources: TrainingData) -> tuple[Classifier, Memory]:
            return classifier, anchored.accumulate_importance(
                classifier, memory, sources, self._sensitivity(classifier, sources)
            )

        return Method(remember=remember, weight=weight, finish=finish)

    def _sensitivity(self, classifier: Classifier, sources: TrainingData) -> Measure:
        def measure(images: Images, names: list[str], tasks: list[str]) -> Params:
            chosen = sample_evenly(images, self.images)
            read = image_reader(chosen, classifier)
            return fisher.output_sensitivity(
                classifier, read, len(chosen.pixels), names, tasks, precision=sources.fisher_precision
            )

        return measure
