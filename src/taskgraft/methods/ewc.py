"""Elastic weight consolidation: hold each weight as strongly as the old predictions depend on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from taskgraft.config import Implicit, Range
from taskgraft.curvature import fisher
from taskgraft.errors import InputError
from taskgraft.methods import anchored
from taskgraft.methods.anchored import Measure
from taskgraft.methods.protocol import Method, Settings, Traits
from taskgraft.models.classifier import Classifier
from taskgraft.models.inference import image_reader, sample_evenly
from taskgraft.types import Images, Memory, Params, Quadratic, TrainingData


@dataclass(frozen=True)
class Ewc(Settings):
    """Pull each weight towards the parent's in proportion to its Fisher information (Kirkpatrick et al. 2017).

    (strength / 2) sum_j F_jj (theta_j - parent_j)^2 over backbone and old heads. F is the mean over images of squared
    per-image gradients, measured on the old sample, or else on the new images with labels drawn from the parent's
    predictions. Under a joint softmax F is that of the one distribution over all outputs, and the new head is held at
    its initial values too. `implicit=True` applies the penalty as a proximal step, stable for any strength; False adds
    its gradient to that of the loss, which under SGD oscillates once lr * strength * F exceeds 2; "auto" is False for
    AdamW under a joint softmax, else True.
    """

    traits = Traits(uses_weights=True, records=True)

    strength: Annotated[float, Range(1e0, 1e6, log=True, at_least=0)] = 1e3
    labels: Literal["sampled", "exact", "empirical"] = "sampled"
    draws: Annotated[int, Range(1, 16, at_least=1, searched=False)] = 1
    images: Annotated[int, Range(64, 65536, at_least=1, searched=False)] = 1024
    implicit: Implicit = "auto"

    def note(self, finished: Memory, past: Memory, has_old: bool) -> str | None:
        """Say where the Fisher information comes from if not from old images."""
        if has_old or past:
            return None
        return (
            "no old sample was given: the Fisher information comes from the new images and the parent's own predictions"
        )

    def build(self) -> Method:
        """Use `remember` (anchor and Fisher), `weight` and `finish` (the Fisher for the next extension)."""

        def remember(classifier: Classifier, sources: TrainingData, past: Memory) -> Memory:
            name = f"{classifier.softmax} Fisher of {self.images} images, {self.labels} labels, {self.draws} draws"
            return anchored.anchor_weights(classifier, sources, past, self._fisher(classifier, sources), name)

        def weight(params: Params, memory: Memory) -> dict[str, Quadratic]:
            return {"ewc": Quadratic(*anchored.anchor_and_importance(memory), self.strength, self.implicit)}

        def finish(classifier: Classifier, memory: Memory, sources: TrainingData) -> tuple[Classifier, Memory]:
            return classifier, anchored.accumulate_importance(
                classifier, memory, sources, self._fisher(classifier, sources)
            )

        return Method(remember=remember, weight=weight, finish=finish)

    def _fisher(self, classifier: Classifier, sources: TrainingData) -> Measure:
        def measure(images: Images, names: list[str], tasks: list[str]) -> Params:
            chosen = sample_evenly(images, self.images)
            unlabeled = [task for task in tasks if task not in images.labels]
            joint = classifier.softmax == "joint"  # then one label per image is enough, whatever its task
            if self.labels == "empirical" and (len(unlabeled) == len(tasks) if joint else unlabeled):
                raise InputError(
                    f"ewc(labels=empirical) needs labeled images of {unlabeled[0]!r}: give --old, or labels=sampled"
                )
            return fisher.fisher_diagonal(
                classifier,
                image_reader(chosen, classifier),
                len(chosen.pixels),
                names,
                tasks,
                labels=self.labels,
                softmax=classifier.softmax,
                targets={task: target for task, target in chosen.labels.items() if task in tasks},
                draws=self.draws,
                seed=sources.seed,
                precision=sources.fisher_precision,
            )

        return measure
