"""Frozen backbone: only the new head learns (linear probing)."""

from __future__ import annotations

from dataclasses import dataclass

from taskgraft.methods.protocol import Method, Settings, Traits
from taskgraft.models.classifier import Classifier, freeze
from taskgraft.types import TrainingData


@dataclass(frozen=True)
class Frozen(Settings):
    """Train a head on the parent's features and nothing else (linear probing): old logits stay bit-identical.

    The cheapest method; the new task can use only what the parent's last layer retains.
    """

    traits = Traits(freezes_old=True)

    def build(self) -> Method:
        """Use `adapt`: freeze everything inherited."""

        def adapt(classifier: Classifier, sources: TrainingData) -> Classifier:
            return freeze(classifier)

        return Method(adapt=adapt)
