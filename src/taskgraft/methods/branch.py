"""Branch: a copy of the last stages, trained for the new task alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch

from taskgraft.config import Range
from taskgraft.errors import InputError
from taskgraft.methods.protocol import Method, Settings, Traits
from taskgraft.models import feature_points
from taskgraft.models.classifier import Classifier, freeze
from taskgraft.models.inference import attach, compute_features, sample_evenly
from taskgraft.models.side_networks import Tail
from taskgraft.types import TrainingData


@dataclass(frozen=True)
class Branch(Settings):
    """Share the first stages, copy the rest for the new task and train only the copy: old logits stay bit-identical.

    `shared` is the fraction of the stages that are shared: 0 up to the first, 1 up to the last. A compromise between
    one model, which forgets, and two, which cost twice; the report states parameters and FLOPs.
    """

    traits = Traits(freezes_old=True, attaches=True)

    shared: Annotated[float, Range(0.0, 1.0, at_most=1.0)] = 0.1

    def build(self) -> Method:
        """Use `adapt`: attach a copy of the last stages, freeze everything inherited."""

        def adapt(classifier: Classifier, sources: TrainingData) -> Classifier:
            points = feature_points.find_points(classifier.backbone)
            if not points:
                raise InputError(
                    f"{type(classifier.backbone).__name__} has only one stage and cannot be branched; use taps"
                )
            point = points[round(self.shared * (len(points) - 1))]
            tail = Tail(point, feature_points.copy_tail(classifier.backbone, point).requires_grad_(True))
            classifier.backbone = feature_points.expose_points(classifier.backbone, [point])
            start = attach(classifier, tail, sources.new)
            features = compute_features(classifier, sample_evenly(sources.new, 2))
            width = features.shape[1] - start
            if not torch.equal(features[:, :width], features[:, start:]):
                raise InputError(
                    f"a copy of the stages after {point!r} gives other features than the network; use taps or distill"
                )
            return freeze(classifier)

        return Method(adapt=adapt)
