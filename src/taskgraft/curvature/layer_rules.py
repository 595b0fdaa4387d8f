"""Rules for per-sample gradients: what each torch function does with its parameters.

A rule reads the arguments of a call and returns a `ParameterUse`: its parameters by role, its input, and how to
add Σ_i |Σ_l per-position gradient|^power to running sums, given the input `a`, the gradient `g` at the output, the
number of samples and the power. `None` means no rule: its parameters take the fallback.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from taskgraft.curvature.per_sample_sums import (
    Geometry,
    Power,
    add_conv_depthwise,
    add_conv_grouped,
    add_conv_pairs,
    add_linear,
    find_cheap_pairs,
    pad_same,
    powers,
)

RunningSums = dict[str, Tensor]  # role -> running sum
AddPowers = Callable[[Tensor, Tensor, int, RunningSums, Power], None]  # (a, g, samples, sums, power)


class ParameterUse(NamedTuple):
    """How one call used its parameters.

    `params` by role; `input` (None if the call has none but parameters); `add` as above; `folded` if a sample
    may take several rows of dimension 0; `kernel_first` if a kernel's sum of squares is best laid out [k, k, O, C].
    """

    params: dict[str, Tensor]
    input: Tensor | None
    add: AddPowers
    folded: bool = False
    kernel_first: bool = False


def _weight_and_bias(weight: Tensor | None, bias: Tensor | None) -> dict[str, Tensor]:
    return {role: value for role, value in (("weight", weight), ("bias", bias)) if value is not None}


def _to_pair(value: Any) -> tuple[int, int]:
    first, *rest = (value,) if isinstance(value, int) else tuple(value)
    return int(first), int(rest[0] if rest else first)


def read_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> ParameterUse:
    """Read y = a Wᵀ + b over any number of positions: gradients Σ_l g_l a_l and Σ_l g_l."""

    def add(a: Tensor, g: Tensor, samples: int, sums: RunningSums, power: Power) -> None:
        a_BLD, g_BLO = (x.reshape(samples, -1, x.shape[-1]) for x in (a, g))
        if "weight" in sums:
            add_linear(sums["weight"], a_BLD, g_BLO, power)
        if "bias" in sums:
            sums["bias"].add_(powers(g_BLO.sum(1), power).sum(0))

    return ParameterUse(_weight_and_bias(weight, bias), input, add, folded=True)


def read_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> ParameterUse | None:
    """Read a convolution [B, C, H, W] -> [B, O, h, w] with any stride, padding, dilation, groups."""
    if input.dim() != 4:
        return None
    border = (0, 0) if isinstance(padding, str) else _to_pair(padding)
    geometry = Geometry((weight.shape[2], weight.shape[3]), _to_pair(stride), border, _to_pair(dilation))
    same = padding == "same"
    size = (pad_same(input[:1], geometry) if same else input).shape[2:]
    taps = find_cheap_pairs((size[0], size[1]), geometry) if groups == 1 else None

    def add(a: Tensor, g: Tensor, samples: int, sums: RunningSums, power: Power) -> None:
        if "weight" in sums:
            image = pad_same(a, geometry) if same else a
            if taps and power == 2:
                add_conv_pairs(sums["weight"], image, g, taps)
            else:
                _add_kernel(sums["weight"], image, g, geometry, groups, power)
        if "bias" in sums:
            sums["bias"].add_(powers(g.sum((2, 3)), power).sum(0))

    return ParameterUse(_weight_and_bias(weight, bias), input, add, kernel_first=taps is not None)


def _add_kernel(total: Tensor, a: Tensor, g: Tensor, geometry: Geometry, groups: int, power: Power) -> None:
    """Add the powers of a kernel's per-sample gradients in the cheapest way that stores them."""
    if groups == a.shape[1] == g.shape[1]:
        add_conv_depthwise(total, a, g, geometry, power)
    elif groups == 1 and geometry[:3] == ((1, 1), (1, 1), (0, 0)):  # 1 × 1: linear at every pixel
        add_linear(total[:, :, 0, 0], a.flatten(2).mT, g.flatten(2).mT, power)
    else:
        add_conv_grouped(total, a, g, geometry, groups, power)


def _norm_rule(center: Callable[[Tensor], Tensor], scale: Tensor | None = None) -> AddPowers:
    """Build the rule of y = γ·x̂ + β, γ and β [C] along dimension 1: Σ_l g x̂, Σ_l g, x̂ = scale·center(a), scale > 0."""

    def add(a: Tensor, g: Tensor, samples: int, sums: RunningSums, power: Power) -> None:
        if "weight" in sums:
            grads_BC = center(a).mul_(g).flatten(2).sum(2) if a.dim() > 2 else center(a).mul_(g)
            sum_C = powers(grads_BC, power).sum(0)
            sums["weight"].add_(sum_C if scale is None else sum_C * scale**power)
        if "bias" in sums:
            sums["bias"].add_(powers(g.flatten(2).sum(2) if g.dim() > 2 else g, power).sum(0))

    return add


def read_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> ParameterUse:
    """Read batch normalization by running statistics; raises ValueError if it would use the batch's own."""
    if training or running_mean is None or running_var is None:
        raise ValueError("a BatchNorm without running statistics mixes the images of a batch: give it some")
    mean = running_mean

    def center(a: Tensor) -> Tensor:
        return a - mean.view((1, -1) + (1,) * (a.dim() - 2))

    return ParameterUse(_weight_and_bias(weight, bias), input, _norm_rule(center, (running_var + eps).rsqrt()))


def read_group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> ParameterUse:
    """Read group normalization."""
    add = _norm_rule(lambda a: F.group_norm(a, num_groups, eps=eps))
    return ParameterUse(_weight_and_bias(weight, bias), input, add)


def read_layer_norm(
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> ParameterUse:
    """Read layer normalization over the last dimensions; the others but the sample's are positions."""
    shape = tuple(normalized_shape)

    def add(a: Tensor, g: Tensor, samples: int, sums: RunningSums, power: Power) -> None:
        if "weight" in sums:
            product = F.layer_norm(a, shape, eps=eps).mul_(g)
            sums["weight"].add_(powers(product.reshape(samples, -1, *shape).sum(1), power).sum(0))
        if "bias" in sums:
            sums["bias"].add_(powers(g.reshape(samples, -1, *shape).sum(1), power).sum(0))

    return ParameterUse(_weight_and_bias(weight, bias), input, add, folded=True)


def _read_broadcast(param: Tensor, other: Tensor, times: bool) -> ParameterUse | None:
    """Read x + p or x·p, p repeated over samples and perhaps positions: the latter are summed first."""
    shape = (1,) * (other.dim() - param.dim()) + tuple(param.shape)
    if param.dim() > other.dim() or shape[:1] != (1,):
        return None

    def add(a: Tensor, g: Tensor, samples: int, sums: RunningSums, power: Power) -> None:
        product = g * a if times else g
        rest = [d for d in range(1, g.dim()) if shape[d] == 1 and g.shape[d] > 1]
        total = powers(product.sum(rest, keepdim=True) if rest else product, power).sum(0)
        sums["value"].add_(total.reshape(sums["value"].shape))

    return ParameterUse({"value": param}, other, add)


def read_elementwise(left: Any, right: Any, *, times: bool, is_parameter: Callable[[Any], bool]) -> ParameterUse | None:
    """Read x + p or x·p, in either order."""
    param, other = (left, right) if is_parameter(left) else (right, left)
    return _read_broadcast(param, other, times) if isinstance(other, Tensor) and not is_parameter(other) else None


def read_expand(param: Tensor, *sizes: Any, is_parameter: Callable[[Any], bool]) -> ParameterUse | None:
    """Read p.expand(B, …), the usual start of a class token."""
    if not is_parameter(param) or param.dim() == 0 or param.shape[0] != 1:
        return None

    def add(a: Tensor, g: Tensor, samples: int, sums: RunningSums, power: Power) -> None:
        shape = (1,) * (g.dim() - param.dim()) + tuple(param.shape)
        rest = [d for d in range(1, g.dim()) if shape[d] == 1 and g.shape[d] > 1]
        total = powers(g.sum(rest, keepdim=True) if rest else g, power).sum(0)
        sums["value"].add_(total.reshape(sums["value"].shape))

    return ParameterUse({"value": param}, None, add)


RULES: dict[Callable[..., Any], Callable[..., ParameterUse | None]] = {
    F.linear: read_linear,
    torch.conv2d: read_conv2d,
    F.batch_norm: read_batch_norm,
    F.group_norm: read_group_norm,
    F.layer_norm: read_layer_norm,
}
# These see which of their operands is a parameter.
OPERATORS: dict[Callable[..., Any], Callable[..., ParameterUse | None]] = {
    **dict.fromkeys((torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__), partial(read_elementwise, times=False)),
    **dict.fromkeys((torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__), partial(read_elementwise, times=True)),
    Tensor.expand: read_expand,
}
# Views that keep the order of the entries: the result stands for the parameter.
RESHAPES = frozenset({torch.reshape, Tensor.reshape, Tensor.view, torch.unsqueeze, Tensor.unsqueeze})
