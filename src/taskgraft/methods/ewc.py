"""Elastic weight consolidation: hold each weight as tightly as the old answers depend on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch

from taskgraft import curvature, data, tree
from taskgraft.classifier import Classifier, inherited
from taskgraft.method import Method
from taskgraft.problem import Problem
from taskgraft.settings import Range
from taskgraft.types import Images, Memory, Params, Quadratic, Sources


@dataclass(frozen=True)
class Ewc:
    """Pull each weight towards the parent's in proportion to its Fisher information (Kirkpatrick et al. 2017).

    (strength / 2) sum_j F_jj (theta_j - parent_j)^2 over backbone and old heads; the founding text's lambda is
    strength / 2. F is the mean over images of squared per-image gradients, measured on the old sample, or else
    on the new images with the parent's own answers. `implicit` takes the penalty as a proximal step, stable for
    any strength; the explicit gradient oscillates once rate * strength * F exceeds 2.
    """

    strength: Annotated[float, Range(1e0, 1e6, log=True, at_least=0)] = 1e3
    labels: Literal["sampled", "exact", "empirical"] = "sampled"
    draws: Annotated[int, Range(1, 16, at_least=1)] = 1
    images: Annotated[int, Range(64, 65536, at_least=1)] = 1024
    implicit: bool = True

    def build(self) -> Method:
        """Uses `remember` (anchor and Fisher), `weight` and `finish` (the next extension's Fisher)."""

        def remember(classifier: Classifier, sources: Sources, past: Memory) -> Memory:
            names = list(inherited(classifier))
            fisher = past.get("fisher") or self._fisher(classifier, sources, names)
            anchor = tree.state(classifier)
            return {
                "anchor": {name: anchor[name] for name in names},
                "fisher": {name: torch.empty_like(anchor[name]).copy_(fisher[name]) for name in names},
            }

        def weight(params: Params, memory: Memory) -> dict[str, Quadratic]:
            return {"ewc": Quadratic(memory["anchor"], memory["fisher"], self.strength, self.implicit)}

        def finish(classifier: Classifier, memory: Memory, sources: Sources) -> tuple[Classifier, Memory]:
            """Add the new task's Fisher to the old ones': the heads are independent, so Fishers add."""
            names = [name for name, _ in classifier.named_parameters()]
            new = classifier.tasks[-1:]
            labels = "exact" if self.labels == "exact" else "sampled"
            added = _measure(classifier, sources.new, names, [new[0].name], self, labels, sources.seed)
            for name, old in memory["fisher"].items():
                added[name] = added[name] + old
            return classifier, {"fisher": added}

        return Method(remember=remember, weight=weight, finish=finish)

    def _fisher(self, classifier: Classifier, sources: Sources, names: list[str]) -> Params:
        old = [task.name for task in classifier.tasks[:-1]]
        if sources.old is None and self.labels == "empirical":
            raise Problem("ewc(labels=empirical) needs labelled old images: give --old DIR, or labels=sampled or exact")
        images = sources.old or sources.new
        if self.labels == "empirical":
            old = [name for name in old if name in images.labels]
        return _measure(classifier, images, names, old, self, self.labels, sources.seed)


def _measure(
    classifier: Classifier,
    images: Images,
    names: list[str],
    tasks: list[str],
    wanted: Ewc,
    labels: Literal["sampled", "exact", "empirical"],
    seed: int,
) -> Params:
    device = next(classifier.parameters()).device
    count = min(wanted.images, len(images.pixels))
    spread = torch.linspace(0, len(images.pixels) - 1, count).long()  # sets lie class by class: take from all of it
    chosen = images._replace(pixels=images.pixels[spread])
    return curvature.fisher_diagonal(
        classifier,
        lambda start, stop: data.ready(chosen, start, stop).to(device),
        count,
        names,
        tasks,
        labels=labels,
        targets={task: target[spread] for task, target in images.labels.items() if task in tasks},
        draws=wanted.draws,
        seed=seed,
    )
