"""What may stand beside the backbone for one task: it reads stages of the shared network and makes further columns."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taskgraft.models.feature_points import PointOutputs

NORM = 8.0  # of standardized rows: about that of a network's own features, so that the same rates suit


class Tail(nn.Module):
    """The last stages once more, for one task alone: reads one point of the shared network."""

    def __init__(self, point: str, net: nn.Module) -> None:
        """`net` maps the point's output to features [B, D]."""
        super().__init__()
        self.point, self.net = point, net

    def forward(self, seen: PointOutputs, images: Tensor) -> Tensor:
        """Features [B, D] of the copied stages."""
        return self.net(seen[self.point])


class Pooled(nn.Module):
    """Mean and deviation over the image of every channel at several points, and a thumbnail; standardized.

    Source: Evci et al. 2022 (Head2Toe): a new task's answer may lie in layers that the last one threw away.
    """

    center: Tensor
    scale: Tensor

    def __init__(self, at: Sequence[str], thumbnail: int, width: int = 1) -> None:
        """`at` are points; `thumbnail` pixels a side (0 = none); `width` the columns, 1 = not standardized yet."""
        super().__init__()
        self.at, self.thumbnail = tuple(at), thumbnail
        self.register_buffer("center", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))

    def standardize(self, columns: Tensor) -> None:
        """From now on give the columns mean 0, equal deviation, and rows of norm NORM, as measured on [N, width]."""
        self.center = columns.mean(0)
        self.scale = NORM / columns.shape[1] ** 0.5 / columns.std(0, correction=0).clamp(min=1e-3)

    def forward(self, seen: PointOutputs, images: Tensor) -> Tensor:
        """Standardized columns [B, width]."""
        return (pool_points(seen, images, self.at, self.thumbnail) - self.center) * self.scale


def pool_points(seen: PointOutputs, images: Tensor, at: Sequence[str], thumbnail: int) -> Tensor:
    """What `Pooled` reads, before it is standardized: [B, columns] float32."""
    parts = [part for point in at for part in _moments(seen[point].float())]
    if thumbnail and images.dim() == 4:
        parts.append(F.adaptive_avg_pool2d(images.float(), thumbnail).flatten(1))
    return torch.cat(parts, 1)


def _moments(value: Tensor) -> tuple[Tensor, ...]:
    """Mean and deviation over positions: [B, C, H, W], [B, H, W, C], [B, N, C] or [B, C]."""
    if value.dim() == 2:
        return (value,)
    last = value.dim() == 3 or _channels_last(value)
    return _spread(value.flatten(1, -2).transpose(1, 2) if last else value.flatten(2))


def _spread(flat: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation over positions: [B, C, N] -> [B, C] twice."""
    mean = flat.mean(2)
    return mean, ((flat - mean[:, :, None]).square().mean(2) + 1e-8).sqrt()


class Ladder(nn.Module):
    """A small network beside a large one: each rung reads a stage and what the rung before made of earlier ones.

    Source: Sung, Cho and Bansal 2022 (LST), here of convolutions. Gradients never enter the shared network.
    """

    def __init__(self, at: Sequence[str], channels: Sequence[int], widths: Sequence[int], dropout: float) -> None:
        """`at` are points in order of execution, `channels` what they give; `widths` what the rungs give."""
        super().__init__()
        self.at, self.channels, self.widths, self.dropout = tuple(at), tuple(channels), tuple(widths), dropout
        before = (0, *self.widths[:-1])
        self.rungs = nn.ModuleList(Rung(*sizes) for sizes in zip(channels, before, widths, strict=True))
        self.last = nn.Sequential(nn.BatchNorm1d(2 * sum(widths)), nn.Dropout(dropout))

    def forward(self, seen: PointOutputs, images: Tensor) -> Tensor:
        """Mean and deviation over the image of every channel of every rung, normalized: [B, 2 * sum(widths)]."""
        found: list[Tensor] = []
        side = None
        for point, rung in zip(self.at, self.rungs, strict=True):
            side = rung(to_map(seen[point], images.dim() == 4), side)
            found += _spread(side.flatten(2))
        return self.last(torch.cat(found, 1))


class Rung(nn.Module):
    """What a stage shows plus what came from below, then mixed over channels and neighbours (an inverted residual)."""

    def __init__(self, channels: int, before: int, width: int) -> None:
        """From maps of `channels`, and of `before` channels (0 = nothing below), to maps of `width`."""
        super().__init__()
        wide = 2 * width
        self.read = _projected(channels, width)
        self.carry = _projected(before, width) if before else None
        self.mix = nn.Sequential(
            nn.ReLU(),
            _projected(width, wide),
            nn.ReLU(),
            nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU(),
            nn.Conv2d(wide, width, 1, bias=False),  # without a norm: its shift would cancel in the norms that follow
        )

    def forward(self, shown: Tensor, below: Tensor | None) -> Tensor:
        """Maps [B, width, H, W] of the size of what is shown."""
        found = self.read(shown)
        if below is not None and self.carry is not None:
            found = found + self.carry(F.adaptive_avg_pool2d(below, found.shape[-2:]))
        return found + self.mix(found)


def to_map(value: Tensor, picture: bool) -> Tensor:
    """A stage's output as [B, C, H, W], float32: tokens of an image as a square, leading ones left out, else a row."""
    value = value.float()
    if value.dim() == 2:
        return value[:, :, None, None]
    if value.dim() == 4:
        return value.permute(0, 3, 1, 2) if _channels_last(value) else value
    tokens, side = value.transpose(1, 2), math.isqrt(value.shape[1])
    return tokens[:, :, -side * side :].unflatten(2, (side, side)) if picture else tokens[:, :, None]


def _projected(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width))


def _channels_last(value: Tensor) -> bool:
    """Whether [B, a, b, c] is [B, H, W, C]: recognized by H = W."""
    return value.shape[1] == value.shape[2] != value.shape[3]
