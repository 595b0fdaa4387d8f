"""Side networks for one task: they read stages of the shared backbone and compute additional features."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taskgraft.models.feature_points import PointOutputs

NORM = 8.0  # of standardized features: about that of a backbone's, so that the same learning rates suit


class Tail(nn.Module):
    """A copy of the last stages for one task; reads one point of the shared backbone."""

    def __init__(self, point: str, net: nn.Module) -> None:
        """`net` maps the point's output to features [B, D]."""
        super().__init__()
        self.point, self.net = point, net

    def forward(self, points: PointOutputs, images: Tensor) -> Tensor:
        """Compute the features [B, D] of the copied stages."""
        return self.net(points[self.point])


class Pooled(nn.Module):
    """Mean and deviation over positions of every channel at several points, and a thumbnail; standardized.

    Source: Evci et al. 2022 (Head2Toe).
    """

    center: Tensor
    scale: Tensor

    def __init__(self, at: Sequence[str], thumbnail: int, width: int = 1) -> None:
        """`at` are points, `thumbnail` its side in pixels (0 = none), `width` the features (1 = not known yet)."""
        super().__init__()
        self.at, self.thumbnail = tuple(at), thumbnail
        self.register_buffer("center", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))

    def standardize(self, columns: Tensor) -> None:
        """Set mean and scale from features [N, width], such that rows have mean 0 and norm NORM."""
        self.center = columns.mean(0)
        self.scale = NORM / columns.shape[1] ** 0.5 / columns.std(0, correction=0).clamp(min=1e-3)

    def forward(self, points: PointOutputs, images: Tensor) -> Tensor:
        """Compute the standardized features [B, width]."""
        return (pool_points(points, images, self.at, self.thumbnail) - self.center) * self.scale


def pool_points(points: PointOutputs, images: Tensor, at: Sequence[str], thumbnail: int) -> Tensor:
    """Compute what `Pooled` standardizes: [B, features] float32."""
    features = [moment for point in at for moment in _moments(points[point].float())]
    if thumbnail and images.dim() == 4:
        features.append(F.adaptive_avg_pool2d(images.float(), thumbnail).flatten(1))
    return torch.cat(features, 1)


def _moments(value: Tensor) -> tuple[Tensor, ...]:
    """Mean and deviation over positions: [B, C, H, W], [B, H, W, C], [B, N, C] or [B, C]."""
    if value.dim() == 2:
        return (value,)
    channels_last = value.dim() == 3 or _is_channels_last(value)
    return _mean_and_deviation(value.flatten(1, -2).transpose(1, 2) if channels_last else value.flatten(2))


def _mean_and_deviation(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation over positions: [B, C, N] -> [B, C] twice."""
    mean = values.mean(2)
    return mean, ((values - mean[:, :, None]).square().mean(2) + 1e-8).sqrt()


class Ladder(nn.Module):
    """A small side network: each rung reads a stage of the backbone and the output of the rung before.

    Source: Sung, Cho and Bansal 2022 (ladder side-tuning), here with convolutions. Gradients never enter the backbone.
    """

    def __init__(self, at: Sequence[str], channels: Sequence[int], widths: Sequence[int], dropout: float) -> None:
        """`at` are points in order of execution, `channels` their channels, `widths` those of the rungs."""
        super().__init__()
        self.at, self.channels, self.widths, self.dropout = tuple(at), tuple(channels), tuple(widths), dropout
        before = (0, *self.widths[:-1])
        self.rungs = nn.ModuleList(Rung(*sizes) for sizes in zip(channels, before, widths, strict=True))
        self.last = nn.Sequential(nn.BatchNorm1d(2 * sum(widths)), nn.Dropout(dropout))

    def forward(self, points: PointOutputs, images: Tensor) -> Tensor:
        """Compute mean and deviation of every channel of every rung, normalized: [B, 2 * sum(widths)]."""
        pooled: list[Tensor] = []
        side = None
        for point, rung in zip(self.at, self.rungs, strict=True):
            side = rung(to_map(points[point], images.dim() == 4), side)
            pooled += _mean_and_deviation(side.flatten(2))
        return self.last(torch.cat(pooled, 1))


class Rung(nn.Module):
    """A stage's output plus that of the rung before, then an inverted residual block."""

    def __init__(self, channels: int, before: int, width: int) -> None:
        """From maps of `channels`, and of `before` channels (0 = first rung), to maps of `width` channels."""
        super().__init__()
        wide = 2 * width
        self.read = _conv1x1_norm(channels, width)
        self.carry = _conv1x1_norm(before, width) if before else None
        self.mix = nn.Sequential(
            nn.ReLU(),
            _conv1x1_norm(width, wide),
            nn.ReLU(),
            nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU(),
            nn.Conv2d(wide, width, 1, bias=False),  # without a norm: its shift would cancel in the norms that follow
        )

    def forward(self, stage: Tensor, below: Tensor | None) -> Tensor:
        """Compute maps [B, width, H, W] of the size of the stage's."""
        maps = self.read(stage)
        if below is not None and self.carry is not None:
            maps = maps + self.carry(F.adaptive_avg_pool2d(below, maps.shape[-2:]))
        return maps + self.mix(maps)


def to_map(value: Tensor, image: bool) -> Tensor:
    """Return a stage's output as [B, C, H, W] float32; image tokens as a square, without leading ones, else a row."""
    value = value.float()
    if value.dim() == 2:
        return value[:, :, None, None]
    if value.dim() == 4:
        return value.permute(0, 3, 1, 2) if _is_channels_last(value) else value
    tokens, side = value.transpose(1, 2), math.isqrt(value.shape[1])
    return tokens[:, :, -side * side :].unflatten(2, (side, side)) if image else tokens[:, :, None]


def _conv1x1_norm(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width))


def _is_channels_last(value: Tensor) -> bool:
    """Whether [B, a, b, c] is [B, H, W, C], which is recognized by H = W."""
    return value.shape[1] == value.shape[2] != value.shape[3]
