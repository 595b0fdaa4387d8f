"""Per-sample squares of the layers that are known: what each torch function does with its parameters.

A rule reads the arguments of a call and answers with a `Reading`: its parameters by role, its input, and how to
add Σ_i (Σ_l per-position gradient)² to running sums, given the input `a`, the gradient `g` at the output, and the
number of samples. `None` means: not understood; the call's parameters take the generic path.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from taskgraft.curvature.products import (
    Geometry,
    add_conv_depthwise,
    add_conv_grouped,
    add_conv_pairs,
    add_dense,
    few_pairs,
    pad_same,
)

Sums = dict[str, Tensor]  # role -> running sum
Add = Callable[[Tensor, Tensor, int, Sums], None]  # (a, g, samples, sums)


class Reading(NamedTuple):
    """What one call did.

    `params` by role; `input` (None if the call has none but parameters); `add` as above; `folded` if a sample
    may take several rows of dimension 0; `taps_first` if the sum of a kernel is best laid out [k, k, O, C].
    """

    params: dict[str, Tensor]
    input: Tensor | None
    add: Add
    folded: bool = False
    taps_first: bool = False


def _affine(weight: Tensor | None, bias: Tensor | None) -> dict[str, Tensor]:
    return {role: value for role, value in (("weight", weight), ("bias", bias)) if value is not None}


def _pair(value: Any) -> tuple[int, int]:
    first, *rest = (value,) if isinstance(value, int) else tuple(value)
    return int(first), int(rest[0] if rest else first)


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Reading:
    """Read y = a Wᵀ + b over any number of positions: (Σ_l g_l a_l)² and (Σ_l g_l)²."""

    def add(a: Tensor, g: Tensor, samples: int, sums: Sums) -> None:
        a_BLD, g_BLO = (x.reshape(samples, -1, x.shape[-1]) for x in (a, g))
        if "weight" in sums:
            add_dense(sums["weight"], a_BLD, g_BLO)
        if "bias" in sums:
            sums["bias"].add_(g_BLO.sum(1).square().sum(0))

    return Reading(_affine(weight, bias), input, add, folded=True)


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Reading | None:
    """Read a convolution [B, C, H, W] -> [B, O, h, w] with any stride, padding, dilation, groups."""
    if input.dim() != 4:
        return None
    border = (0, 0) if isinstance(padding, str) else _pair(padding)
    geometry = Geometry((weight.shape[2], weight.shape[3]), _pair(stride), border, _pair(dilation))
    same = padding == "same"
    add_kernel, taps_first = _convolution(pad_same(input[:1], geometry) if same else input, weight, geometry, groups)

    def add(a: Tensor, g: Tensor, samples: int, sums: Sums) -> None:
        if "weight" in sums:
            add_kernel(sums["weight"], pad_same(a, geometry) if same else a, g)
        if "bias" in sums:
            sums["bias"].add_(g.sum((2, 3)).square().sum(0))

    return Reading(_affine(weight, bias), input, add, taps_first=taps_first)


def _convolution(
    input: Tensor, weight: Tensor, geometry: Geometry, groups: int
) -> tuple[Callable[[Tensor, Tensor, Tensor], None], bool]:
    """Choose the cheapest exact way to add a kernel's squares, given (sum, a, g); is [k, k, O, C] best for it?"""
    taps = few_pairs((input.shape[2], input.shape[3]), geometry) if groups == 1 else None
    if taps:
        return lambda total, a, g: add_conv_pairs(total, a, g, taps), True
    if groups == input.shape[1] == len(weight):
        return lambda total, a, g: add_conv_depthwise(total, a, g, geometry), False
    if groups == 1 and geometry[:3] == ((1, 1), (1, 1), (0, 0)):  # 1 × 1: linear at every pixel
        return lambda total, a, g: add_dense(total[:, :, 0, 0], *(x.flatten(2).mT for x in (a, g))), False
    return lambda total, a, g: add_conv_grouped(total, a, g, geometry, groups), False


def _normalised(centre: Callable[[Tensor], Tensor], scale: Tensor | None = None) -> Add:
    """Build the rule of y = γ·x̂ + β, γ and β [C] along dimension 1: (Σ_l g x̂)² and (Σ_l g)², x̂ = scale·centre(a)."""

    def add(a: Tensor, g: Tensor, samples: int, sums: Sums) -> None:
        if "weight" in sums:
            grads_BC = centre(a).mul_(g).flatten(2).sum(2) if a.dim() > 2 else centre(a).mul_(g)
            squares = grads_BC.square_().sum(0)
            sums["weight"].add_(squares if scale is None else squares * scale.square())
        if "bias" in sums:
            sums["bias"].add_((g.flatten(2).sum(2) if g.dim() > 2 else g).square().sum(0))

    return add


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Reading:
    """Read batch normalisation by running statistics; raises ValueError if it would use the batch's own."""
    if training or running_mean is None or running_var is None:
        raise ValueError("a BatchNorm without running statistics mixes the images of a batch: give it some")
    mean = running_mean

    def centre(a: Tensor) -> Tensor:
        return a - mean.view((1, -1) + (1,) * (a.dim() - 2))

    return Reading(_affine(weight, bias), input, _normalised(centre, (running_var + eps).rsqrt()))


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Reading:
    """Read group normalisation."""
    add = _normalised(lambda a: F.group_norm(a, num_groups, eps=eps))
    return Reading(_affine(weight, bias), input, add)


def layer_norm(
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Reading:
    """Read layer normalisation over the last dimensions; the others but the sample's are positions."""
    shape = tuple(normalized_shape)

    def add(a: Tensor, g: Tensor, samples: int, sums: Sums) -> None:
        if "weight" in sums:
            product = F.layer_norm(a, shape, eps=eps).mul_(g)
            sums["weight"].add_(product.reshape(samples, -1, *shape).sum(1).square().sum(0))
        if "bias" in sums:
            sums["bias"].add_(g.reshape(samples, -1, *shape).sum(1).square().sum(0))

    return Reading(_affine(weight, bias), input, add, folded=True)


def _broadcast(param: Tensor, other: Tensor, times: bool) -> Reading | None:
    """Read x + p or x·p, p repeated over samples and perhaps positions: those are summed, then squared."""
    shape = (1,) * (other.dim() - param.dim()) + tuple(param.shape)
    if param.dim() > other.dim() or shape[:1] != (1,):
        return None

    def add(a: Tensor, g: Tensor, samples: int, sums: Sums) -> None:
        product = g * a if times else g
        rest = [d for d in range(1, g.dim()) if shape[d] == 1 and g.shape[d] > 1]
        squares = (product.sum(rest, keepdim=True) if rest else product).square().sum(0)
        sums["value"].add_(squares.reshape(sums["value"].shape))

    return Reading({"value": param}, other, add)


def _elementwise(times: bool) -> Callable[..., Reading | None]:
    def read(left: Any, right: Any, *, known: Callable[[Any], bool]) -> Reading | None:
        param, other = (left, right) if known(left) else (right, left)
        return _broadcast(param, other, times) if isinstance(other, Tensor) and not known(other) else None

    return read


def expand(param: Tensor, *sizes: Any, known: Callable[[Any], bool]) -> Reading | None:
    """Read p.expand(B, …), the usual start of a class token."""
    if not known(param) or param.dim() == 0 or param.shape[0] != 1:
        return None

    def add(a: Tensor, g: Tensor, samples: int, sums: Sums) -> None:
        shape = (1,) * (g.dim() - param.dim()) + tuple(param.shape)
        rest = [d for d in range(1, g.dim()) if shape[d] == 1 and g.shape[d] > 1]
        squares = (g.sum(rest, keepdim=True) if rest else g).square().sum(0)
        sums["value"].add_(squares.reshape(sums["value"].shape))

    return Reading({"value": param}, None, add)


RULES: dict[Callable[..., Any], Callable[..., Reading | None]] = {
    F.linear: linear,
    torch.conv2d: conv2d,
    F.batch_norm: batch_norm,
    F.group_norm: group_norm,
    F.layer_norm: layer_norm,
}
# These see which of their operands is a parameter.
OPERATORS: dict[Callable[..., Any], Callable[..., Reading | None]] = {
    **dict.fromkeys((torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__), _elementwise(False)),
    **dict.fromkeys((torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__), _elementwise(True)),
    Tensor.expand: expand,
}
# Views that keep the order of the entries: the result stands for the parameter.
VIEWS = frozenset({torch.reshape, Tensor.reshape, Tensor.view, torch.unsqueeze, Tensor.unsqueeze})
