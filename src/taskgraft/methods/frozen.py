"""Frozen: only the new head learns."""

from __future__ import annotations

from dataclasses import dataclass

from taskgraft.methods.protocol import Method, Settings, Traits
from taskgraft.models.classifier import Classifier, freeze
from taskgraft.types import TrainingData


@dataclass(frozen=True)
class Frozen(Settings):
    """Learn a head on the parent's last features and change nothing else: old answers stay bit-identical.

    Costs the least; the new task gets only what the parent's last layer did not throw away.
    """

    @property
    def traits(self) -> Traits:
        """See `Traits`."""
        return Traits(freezes_old=True)

    def build(self) -> Method:
        """Uses `adapt`."""

        def adapt(classifier: Classifier, sources: TrainingData) -> Classifier:
            return freeze(classifier)

        return Method(adapt=adapt)
