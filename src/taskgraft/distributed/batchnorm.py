"""Batch normalization over the images of all processes, for any layer and any device.

torch.nn.SyncBatchNorm refuses CPU tensors and is another class of layer, into which timm's BatchNormAct2d and traced
networks would have to be converted and back. Here `F.batch_norm`, which every such layer calls, is replaced for the
duration of a forward pass, so that models stay as they are and CPU and GPU groups run the same code.
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
    """Return a context in which BatchNorm in training mode uses the statistics of all processes' images."""
    return nullcontext() if world_size() == 1 else _SyncedMode()


class _SyncedMode(TorchFunctionMode):
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
    """Replace `F.batch_norm` on images [B, C, ...]: statistics of the batch are those of all processes."""
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
    """Return mean [C], variance [C] and values per channel over all processes (merged exactly, Chan et al. 1979)."""
    values = images.float()
    axes = [axis for axis in range(images.dim()) if axis != 1]
    count = images.numel() // images.shape[1]
    mean = values.mean(axes) if count else values.new_zeros(images.shape[1])
    square_sum = (values - _per_channel(mean, images)).square().sum(axes)
    local = torch.stack([mean, square_sum, torch.full_like(mean, count)])
    gathered = [torch.empty_like(local) for _ in range(world_size())]
    dist.all_gather(gathered, local)
    means, square_sums, counts = torch.stack(gathered).double().unbind(1)
    total = counts.sum(0)
    overall_mean = (means * counts).sum(0) / total
    variance = (square_sums + counts * (means - overall_mean).square()).sum(0) / total
    return overall_mean.float(), variance.float(), int(total[0])


class _Normalize(torch.autograd.Function):
    """(x - mean) * scale * weight + bias, where mean and scale depend on the x of every process."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, scale: Tensor, count: int
    ) -> Tensor:
        ctx.save_for_backward(images, weight, mean, scale)
        ctx.count, ctx.shifted = count, bias is not None
        factor = scale if weight is None else scale * weight
        normalized = (images - _per_channel(mean, images)) * _per_channel(factor, images)
        return (normalized if bias is None else normalized + _per_channel(bias, images)).to(images.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        images, weight, mean, scale = ctx.saved_tensors
        gradient = gradients[0].float()
        axes = [axis for axis in range(images.dim()) if axis != 1]
        normal = (images.float() - _per_channel(mean, images)) * _per_channel(scale, images)
        local = torch.stack([gradient.sum(axes), (gradient * normal).sum(axes)])
        total = local.clone()
        dist.all_reduce(total)
        inner = (
            gradient - _per_channel(total[0] / ctx.count, images) - normal * _per_channel(total[1] / ctx.count, images)
        )
        outer = scale if weight is None else scale * weight
        back = (inner * _per_channel(outer, images)).to(images.dtype)
        return back, None if weight is None else local[1], local[0] if ctx.shifted else None, None, None, None


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    """Reshape a value per channel [C] to broadcast against [B, C, ...]."""
    return values.view(1, -1, *[1] * (like.dim() - 2))
