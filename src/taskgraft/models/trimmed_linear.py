"""A linear layer from which outputs were removed, whose other outputs keep their bits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TrimmedLinear(nn.Linear):
    """A linear layer that holds some rows of a larger one, and computes them as that one did.

    The bits of a matrix product may depend on how many rows the matrix has and on where a row is in it. Without
    gradients the removed rows are therefore multiplied as zeros in their places, and their outputs are left out.
    Training, where no such bits matter, multiplies the remaining rows alone.
    """

    source: Tensor
    places: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, places: Sequence[int], full: int) -> None:
        """Keep the rows of a layer.

        Args:
            weight: The rows that stay [K, D].
            bias: Their biases [K].
            places: The row of the larger layer that each of them was, ascending.
            full: Rows of the larger layer.
        """
        super().__init__(weight.shape[1], len(places), device=weight.device, dtype=weight.dtype)
        with torch.no_grad():
            self.weight.copy_(weight)
            self.bias.copy_(bias)
        self.full = full
        source = torch.full((full,), len(places))  # a row of zeros, which is appended
        source[list(places)] = torch.arange(len(places))
        self.register_buffer("source", source.to(weight.device), persistent=False)
        self.register_buffer("places", torch.tensor(places, device=weight.device), persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        """Compute the outputs that stay [B, K] from features [B, D]."""
        if torch.is_grad_enabled():
            return super().forward(input)
        weight = torch.cat([self.weight, self.weight.new_zeros(1, self.in_features)]).index_select(0, self.source)
        bias = torch.cat([self.bias, self.bias.new_zeros(1)]).index_select(0, self.source)
        return F.linear(input, weight, bias).index_select(1, self.places)


def trim(head: nn.Linear, rows: Sequence[int]) -> nn.Linear:
    """Return a linear layer with these rows alone, in their order; the layer itself where it has no others."""
    if len(rows) == head.out_features:
        return head
    kept = list(rows)
    before = head.places.tolist() if isinstance(head, TrimmedLinear) else list(range(head.out_features))
    full = head.full if isinstance(head, TrimmedLinear) else head.out_features
    return TrimmedLinear(head.weight.detach()[kept], head.bias.detach()[kept], [before[row] for row in kept], full)
