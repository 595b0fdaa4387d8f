"""Frozen: only the new head learns."""

from __future__ import annotations

from dataclasses import dataclass

from taskgraft.classifier import Classifier, freeze
from taskgraft.method import Method
from taskgraft.types import Sources


@dataclass(frozen=True)
class Frozen:
    """Learn a head on the parent's last features and change nothing else: old answers stay bit-identical.

    Costs the least; the new task gets only what the parent's last layer did not throw away.
    """

    def build(self) -> Method:
        """Uses `adapt`."""

        def adapt(classifier: Classifier, sources: Sources) -> Classifier:
            return freeze(classifier)

        return Method(adapt=adapt)
