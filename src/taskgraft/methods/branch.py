"""Branch: the last stages once more, for the new task alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch

from taskgraft import stages
from taskgraft.classifier import Classifier, freeze
from taskgraft.extras import Tail
from taskgraft.features import attach, features_of, sample
from taskgraft.method import Method
from taskgraft.problem import Problem
from taskgraft.settings import Range
from taskgraft.types import Sources


@dataclass(frozen=True)
class Branch:
    """Share the first stages, copy the rest for the new task, and train the copy alone: old answers bit-identical.

    `shared` is how far the stages are shared: 0 up to the first, 1 up to the last. A point between one model, which
    forgets, and two, which cost twice; parameters and arithmetic are stated in the report.
    """

    shared: Annotated[float, Range(0.0, 1.0, at_most=1.0)] = 0.1

    def build(self) -> Method:
        """Uses `adapt`: a copy of the last stages is attached, everything older is frozen."""

        def adapt(classifier: Classifier, sources: Sources) -> Classifier:
            known = stages.points(classifier.backbone)
            if not known:
                raise Problem(
                    f"{type(classifier.backbone).__name__} has one stage only and cannot be branched; use taps"
                )
            point = known[round(self.shared * (len(known) - 1))]
            own = Tail(point, stages.tail(classifier.backbone, point).requires_grad_(True))
            classifier.backbone = stages.staged(classifier.backbone, [point])
            start = attach(classifier, own, sources.new)
            columns = features_of(classifier, sample(sources.new, 2))
            width = columns.shape[1] - start
            if not torch.equal(columns[:, :width], columns[:, start:]):
                raise Problem(
                    f"a copy of what follows {point!r} answers otherwise than the network; use taps or distill"
                )
            return freeze(classifier)

        return Method(adapt=adapt)
