"""Plain fine-tuning: no protection at all; the baseline that forgets."""

from __future__ import annotations

from dataclasses import dataclass

from taskgraft.methods.protocol import Method


@dataclass(frozen=True)
class Finetune:
    """Learn the new task and protect nothing: the founding text's baseline."""

    def build(self) -> Method:
        """No slot is used."""
        return Method()
