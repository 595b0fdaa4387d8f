"""Outputs of any network by name: one tensor of logits, or a dictionary of several."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from taskgraft.errors import InputError
from taskgraft.types import Outputs

OUTPUT = "output"  # the name of an output that comes alone


class NamedOutputs(nn.Module):
    """A network that answers {name: logits [B, K]}; its parameters are those of the network, below "network."."""

    def __init__(self, network: nn.Module) -> None:
        """`network` returns logits [B, K], or several by name."""
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor) -> Outputs:
        """Compute the logits by name."""
        return name_outputs(self.network(inputs))


def name_outputs(outputs: Any) -> Outputs:
    """Return logits by name; those of a single tensor are called `OUTPUT`.

    Raises:
        InputError: They are neither a tensor nor a dictionary of tensors.
    """
    if isinstance(outputs, Tensor):
        return {OUTPUT: outputs}
    if isinstance(outputs, Mapping):
        named = {str(name): value for name, value in outputs.items() if isinstance(value, Tensor)}
        if named:
            return named
    raise InputError(
        f"the network answers with a {type(outputs).__name__}, but a tensor of logits [B, K] or a dictionary of them "
        "is needed; wrap it in a module that returns one"
    )
