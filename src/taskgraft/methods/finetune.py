"""Plain fine-tuning: no protection at all; the baseline that forgets."""

from __future__ import annotations

from dataclasses import dataclass

from taskgraft.methods.protocol import Method, Settings, Traits


@dataclass(frozen=True)
class Finetune(Settings):
    """Learn the new task and protect nothing: the founding text's baseline."""

    @property
    def traits(self) -> Traits:
        """See `Traits`."""
        return Traits(protects=False)

    def build(self) -> Method:
        """No slot is used."""
        return Method()
