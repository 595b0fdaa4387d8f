"""Plain fine-tuning: no protection, the baseline that forgets."""

from __future__ import annotations

from dataclasses import dataclass

from taskgraft.methods.protocol import Method, Settings, Traits


@dataclass(frozen=True)
class Finetune(Settings):
    """Train on the new task without any protection of the old ones: the baseline."""

    traits = Traits(protects=False)

    def build(self) -> Method:
        """Use no function."""
        return Method()
