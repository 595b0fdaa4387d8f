"""Batch normalization over the images of all processes, whatever layer asks for it and wherever it runs.

torch's own SyncBatchNorm wants a GPU and another class of layer. Here the function that every such layer calls is
replaced while a forward pass lasts, so that models stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from taskgraft.distributed.group import world_size


def sync_batchnorm() -> AbstractContextManager[Any]:
    """While this lasts, BatchNorm in training mode sees the batch of all processes."""
    return nullcontext() if world_size() == 1 else _Everywhere()


class _Everywhere(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return (_batch_norm if func is F.batch_norm else func)(*args, **(kwargs or {}))


def _batch_norm(
    images: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`F.batch_norm`, with the statistics of all processes' images [B, C, ...] where it takes them from the batch."""
    if not training:
        return torch.batch_norm(
            images, weight, bias, running_mean, running_var, training, momentum, eps, torch.backends.cudnn.enabled
        )
    mean, var, count = _statistics(images.detach())
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean), momentum)
            running_var.lerp_((var * count / (count - 1)).to(running_var), momentum)
    return _Normalize.apply(images, weight, bias, mean, (var + eps).rsqrt(), count)


def _statistics(images: Tensor) -> tuple[Tensor, Tensor, int]:
    """Mean [C], variance [C] and number of values a channel, over all processes (Chan et al. 1979: merged exactly)."""
    values = images.float()
    axes = [axis for axis in range(images.dim()) if axis != 1]
    count = images.numel() // images.shape[1]
    mean = values.mean(axes) if count else values.new_zeros(images.shape[1])
    spread = (values - _wide(mean, images)).square().sum(axes)
    own = torch.stack([mean, spread, torch.full_like(mean, count)])
    parts = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(parts, own)
    means, spreads, counts = torch.stack(parts).double().unbind(1)
    total = counts.sum(0)
    whole = (means * counts).sum(0) / total
    variance = (spreads + counts * (means - whole).square()).sum(0) / total
    return whole.float(), variance.float(), int(total[0])


class _Normalize(torch.autograd.Function):
    """(x - mean) * scale * weight + bias; the gradient knows that mean and scale depend on every process's x."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, scale: Tensor, count: int
    ) -> Tensor:
        ctx.save_for_backward(images, weight, mean, scale)
        ctx.count, ctx.shifted = count, bias is not None
        slope = scale if weight is None else scale * weight
        found = (images - _wide(mean, images)) * _wide(slope, images)
        return (found if bias is None else found + _wide(bias, images)).to(images.dtype)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        images, weight, mean, scale = ctx.saved_tensors
        slope = slopes[0].float()
        axes = [axis for axis in range(images.dim()) if axis != 1]
        normal = (images.float() - _wide(mean, images)) * _wide(scale, images)
        own = torch.stack([slope.sum(axes), (slope * normal).sum(axes)])
        whole = own.clone()
        dist.all_reduce(whole)
        inner = slope - _wide(whole[0] / ctx.count, images) - normal * _wide(whole[1] / ctx.count, images)
        outer = scale if weight is None else scale * weight
        back = (inner * _wide(outer, images)).to(images.dtype)
        return back, None if weight is None else own[1], own[0] if ctx.shifted else None, None, None, None


def _wide(values: Tensor, like: Tensor) -> Tensor:
    """A value for each channel [C], shaped to be used with [B, C, ...]."""
    return values.view(1, -1, *[1] * (like.dim() - 2))
