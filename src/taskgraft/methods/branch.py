"""Branch: the last stages once more, for the new task alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch

from taskgraft.config import Range
from taskgraft.errors import InputError
from taskgraft.methods.protocol import Method, Settings, Traits
from taskgraft.models import feature_points
from taskgraft.models.classifier import Classifier, freeze
from taskgraft.models.features import attach, compute_features, sample_evenly
from taskgraft.models.side_networks import Tail
from taskgraft.types import TrainingData


@dataclass(frozen=True)
class Branch(Settings):
    """Share the first stages, copy the rest for the new task, and train the copy alone: old answers bit-identical.

    `shared` is how far the stages are shared: 0 up to the first, 1 up to the last. A point between one model, which
    forgets, and two, which cost twice; parameters and arithmetic are stated in the report.
    """

    shared: Annotated[float, Range(0.0, 1.0, at_most=1.0)] = 0.1

    @property
    def traits(self) -> Traits:
        """See `Traits`."""
        return Traits(freezes_old=True, attaches=True)

    def build(self) -> Method:
        """Uses `adapt`: a copy of the last stages is attached, everything older is frozen."""

        def adapt(classifier: Classifier, sources: TrainingData) -> Classifier:
            known = feature_points.find_points(classifier.backbone)
            if not known:
                raise InputError(
                    f"{type(classifier.backbone).__name__} has one stage only and cannot be branched; use taps"
                )
            point = known[round(self.shared * (len(known) - 1))]
            own = Tail(point, feature_points.copy_tail(classifier.backbone, point).requires_grad_(True))
            classifier.backbone = feature_points.expose_points(classifier.backbone, [point])
            start = attach(classifier, own, sources.new)
            columns = compute_features(classifier, sample_evenly(sources.new, 2))
            width = columns.shape[1] - start
            if not torch.equal(columns[:, :width], columns[:, start:]):
                raise InputError(
                    f"a copy of what follows {point!r} answers otherwise than the network; use taps or distill"
                )
            return freeze(classifier)

        return Method(adapt=adapt)
