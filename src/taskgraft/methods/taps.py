"""Taps: the new head reads features of every stage of the network, not only of the last."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch

from taskgraft.config import Range
from taskgraft.methods.protocol import Method, Settings, Traits
from taskgraft.models import feature_points
from taskgraft.models.classifier import Classifier, freeze
from taskgraft.models.inference import attach, compute_features, sample_evenly
from taskgraft.models.side_networks import Pooled
from taskgraft.types import TrainingData

IMAGES = 1024  # from which mean and deviation of the features are taken


@dataclass(frozen=True)
class Taps(Settings):
    """Feed the new head each stage's channel means and deviations and a thumbnail (Head2Toe, Evci et al. 2022).

    What the last layer discards is often still present in earlier ones. With `backbone="frozen"` old logits stay
    bit-identical; "trained" trains all weights and should be combined with a method that protects them.
    """

    backbone: Literal["frozen", "trained"] = "frozen"
    thumbnail: Annotated[int, Range(0, 16, at_least=0, at_most=64)] = 4
    stages: Annotated[int, Range(2, 32, at_least=1)] = 12

    @property
    def traits(self) -> Traits:  # pyright: ignore[reportIncompatibleVariableOverride] - depends on a setting
        """See `Traits`."""
        return Traits(freezes_old=self.backbone == "frozen", attaches=True, unfreeze="backbone=trained")

    def build(self) -> Method:
        """Use `adapt`: expose the stages of the backbone and let the new head read them all."""

        def adapt(classifier: Classifier, sources: TrainingData) -> Classifier:
            points = feature_points.find_points(classifier.backbone)
            spaced = torch.linspace(0, len(points) - 1, min(self.stages, len(points))).round().long().tolist()
            chosen = [*(points[i] for i in spaced), feature_points.LAST]
            classifier.backbone = feature_points.expose_points(classifier.backbone, chosen[:-1])
            tap = Pooled(chosen, self.thumbnail)
            start = attach(classifier, tap, sources.new)
            tap.standardize(compute_features(classifier, sample_evenly(sources.new, IMAGES))[:, start:])
            return classifier if self.backbone == "trained" else freeze(classifier)

        return Method(adapt=adapt)
