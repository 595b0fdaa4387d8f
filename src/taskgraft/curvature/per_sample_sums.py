"""Sums over samples of powers of products: Σ_i |Σ_l g_il a_il|^power, the heart of Fisher and sensitivity.

i counts samples (B), l positions (L): tokens or pixels of the output. Two exact ways, chosen by cost:
 - pairs: (Σ_l g_l a_l)² = Σ_{l ≤ l'} (2 − [l = l']) (g_l g_l') (a_l a_l'), so samples and pairs together are the
   inner dimension of one matrix product and no gradient of a single sample is ever stored; magnitudes multiply
   only if there is one position, |g a| = |g| |a|;
 - per sample: the weight gradients of a few samples at a time, squared (or made positive) in the cache.
"""

from __future__ import annotations

from itertools import combinations_with_replacement
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from taskgraft.curvature.products import operand
from taskgraft.curvature.sizes import sizes_on

# Storing, squaring and adding one entry of a sample's gradient takes as long as about 20 multiplications in a
# matrix product (measured: 0.4 ns against 0.02 ns, AVX-512, 2 cores, float32).
STORE_COST = 20

Power = Literal[1, 2]  # of the magnitude of a sample's gradient: 2 for the Fisher, 1 for the sensitivity


def powers(grads: Tensor, power: Power) -> Tensor:
    """Return |grads|^power, entry by entry."""
    return grads.square() if power == 2 else grads.abs()


def add_powers(total: Tensor, grads: Tensor, power: Power) -> None:
    """Add Σ_i |grads[i]|^power to `total`; grads [B, *total.shape] is overwritten."""
    if len(grads) > 8:
        total.add_((grads.square_() if power == 2 else grads.abs_()).sum(0))
        return
    for row in grads:  # adding large rows one by one beats a sum over them, the fused square above all
        if power == 2:
            total.addcmul_(row, row)
        else:
            total.add_(row.abs_())


def add_linear(total_OD: Tensor, a_BLD: Tensor, g_BLO: Tensor, power: Power) -> None:
    """Add Σ_i |Σ_l g_il a_il|^power of a linear layer to `total_OD`."""
    size, positions, _ = a_BLD.shape
    if power == 1 and positions == 1:
        total_OD.addmm_(operand(g_BLO[:, 0].abs()).T, operand(a_BLD[:, 0].abs()))
        return
    if power == 2 and positions * (positions + 1) // 2 <= positions + STORE_COST:
        left, right = torch.triu_indices(positions, positions, device=a_BLD.device)
        factors = torch.where(left == right, 1, 2).to(a_BLD.dtype)
        pairs_a = (a_BLD[:, left] * a_BLD[:, right]).flatten(0, 1)
        pairs_g = (g_BLO[:, left] * g_BLO[:, right] * factors[:, None]).flatten(0, 1)
        total_OD.addmm_(operand(pairs_g).T, operand(pairs_a))
        return
    step = min(size, max(1, sizes_on(total_OD.device).tile // total_OD.numel()))
    buffer = total_OD.new_empty(step, *total_OD.shape)
    for at in range(0, size, step):
        g, a = operand(g_BLO[at : at + step]), operand(a_BLD[at : at + step])
        add_powers(total_OD, torch.bmm(g.transpose(1, 2), a, out=buffer[: len(a)]), power)


def pad_same(a: Tensor, geometry: Geometry) -> Tensor:
    """Pad [B, C, H, W] as `padding="same"` does: the odd pixel goes to the end."""
    rows, columns = (d * (k - 1) for k, d in zip(geometry.kernel, geometry.dilation, strict=True))
    return F.pad(a, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))


class Geometry(NamedTuple):
    """Where the kernel of a convolution meets the image; each field is (rows, columns)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]


TapPositions = list[list[tuple[int, int]]]  # for each tap of the kernel, its (output, input) positions


def find_cheap_pairs(size: tuple[int, int], geometry: Geometry) -> tuple[TapPositions, TapPositions] | None:
    """List the rows' and the columns' taps for images of `size` if pairs of positions are the cheaper way."""
    rows, columns = (_positions_per_tap(size[j], *(field[j] for field in geometry)) for j in range(2))
    counts = [len(y) * len(x) for y in rows for x in columns]  # positions of each tap
    cheap = sum(n * (n + 1) // 2 for n in counts) <= len(counts) * (max(counts) + STORE_COST)
    return (rows, columns) if cheap else None


def _positions_per_tap(size: int, kernel: int, stride: int, padding: int, dilation: int) -> TapPositions:
    out = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    positions = [[(y, y * stride - padding + u * dilation) for y in range(out)] for u in range(kernel)]
    return [[(y, x) for y, x in tap if 0 <= x < size] for tap in positions]


def add_conv_pairs(total: Tensor, a: Tensor, g: Tensor, taps: tuple[TapPositions, TapPositions]) -> None:
    """Add Σ_i (Σ_l g_il a_il)² of an ungrouped convolution tap by tap; where padding is met, pairs are few.

    total [O, C, k, k], fastest if laid out [k, k, O, C]; a [B, C, H, W]; g [B, O, h, w].
    """
    a_HWBC, g_hwBO = a.permute(2, 3, 0, 1).contiguous(), g.permute(2, 3, 0, 1).contiguous()
    products: dict[tuple[object, ...], Tensor] = {}  # taps share most products

    def product(side: str, values: Tensor, first: tuple[int, int], second: tuple[int, int]) -> Tensor:
        key = (side, first, second)
        if key not in products:
            products[key] = values[first] * values[second]
            if side == "g" and first != second:
                products[key] *= 2
        return products[key]

    for u, rows in enumerate(taps[0]):
        for v, columns in enumerate(taps[1]):
            positions = [((y, x), (i, j)) for y, i in rows for x, j in columns]
            pairs = list(combinations_with_replacement(positions, 2))
            if pairs:
                left = [product("g", g_hwBO, one[0], two[0]) for one, two in pairs]
                right = [product("a", a_HWBC, one[1], two[1]) for one, two in pairs]
                total[:, :, u, v].addmm_(operand(torch.cat(left)).T, operand(torch.cat(right)))


def add_conv_depthwise(total: Tensor, a: Tensor, g: Tensor, geometry: Geometry, power: Power) -> None:
    """Add Σ_i |Σ_l g_il a_il|^power of a convolution with one input channel for each output channel.

    The gradient of a kernel is the correlation of image and output gradient, so a forward convolution gives it with
    g as the kernel and stride and dilation exchanged: up to 40 times as fast as oneDNN's own backward pass.
    total [C, 1, k, k]; a [B, C, H, W]; g [B, C, h, w].
    """
    images, kernels = operand(a).reshape(1, -1, *a.shape[2:]), operand(g).reshape(-1, 1, *g.shape[2:])
    _, stride, padding, dilation = geometry
    grads = F.conv2d(images, kernels, None, dilation, padding, stride, len(kernels))
    rows, columns = geometry.kernel  # more come out where the stride leaves pixels unused
    add_powers(total, grads[0, :, :rows, :columns].reshape(len(a), *total.shape), power)


def add_conv_grouped(total: Tensor, a: Tensor, g: Tensor, geometry: Geometry, groups: int, power: Power) -> None:
    """Add Σ_i |Σ_l g_il a_il|^power of any convolution: every sample becomes a group of one wide convolution.

    total [O, C/groups, k, k]; a [B, C, H, W]; g [B, O, h, w]. Source: Rochette et al. 2019, "Efficient
    per-example gradient computations in convolutional neural networks".
    """
    step = max(1, sizes_on(total.device).tile // total.numel())
    stride, padding, dilation = cast(Any, geometry[1:])  # torch's annotations forget that pairs are allowed
    for at in range(0, len(a), step):
        part_a, part_g = operand(a[at : at + step]), operand(g[at : at + step])
        size = len(part_a)
        grads = conv2d_weight(
            part_a.reshape(1, -1, *a.shape[2:]),
            (size * total.shape[0], *total.shape[1:]),
            part_g.reshape(1, -1, *g.shape[2:]),
            stride,
            padding,
            dilation,
            size * groups,
        )
        add_powers(total, grads.view(size, *total.shape), power)
