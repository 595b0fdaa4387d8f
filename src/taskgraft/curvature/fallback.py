"""Per-sample gradients of any parameter of any model by torch.func, at the cost of a second forward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from taskgraft.curvature.per_sample_sums import Power, powers
from taskgraft.curvature.sizes import sizes_on
from taskgraft.types import Params

# For each backward pass task -> gradient at the logits [B, K], 0 if absent.
CotangentsPerPass = Sequence[Mapping[str, Tensor]]
SumPowers = Callable[[Tensor, CotangentsPerPass], Params]  # (images, cotangents) -> name -> sum over images and passes


def find_reachable(model: nn.Module, params: Params, images: Tensor, tasks: Sequence[str]) -> set[str]:
    """Return the names of those `params` on which the logits of `tasks` depend at all."""
    values = {name: value.detach().requires_grad_() for name, value in params.items()}
    outputs = functional_call(model, values, (images,))
    total = torch.stack([outputs[task].sum() for task in tasks]).sum()
    if not values or not total.requires_grad:
        return set()
    grads = torch.autograd.grad(total, list(values.values()), allow_unused=True)
    return {name for name, grad in zip(values, grads, strict=True) if grad is not None}


def choose_sum(model: nn.Module, params: Params, images: Tensor, tasks: Sequence[str], power: Power) -> SumPowers:
    """Return the vectorized sum, or the loop where vmap fails on `images`."""
    vectorized = partial(_vectorized, model, params, power)
    with torch.no_grad():
        outputs = model(images)
    try:
        vectorized(images, [{task: torch.ones_like(outputs[task]) for task in tasks}])
    except (RuntimeError, ValueError):  # what vmap raises for operations that it cannot batch
        return partial(_looped, model, params, power)
    return vectorized


def _vectorized(
    model: nn.Module, params: Params, power: Power, images: Tensor, cotangents: CotangentsPerPass
) -> Params:
    tasks = {task for cotangent in cotangents for task in cotangent}

    def of_image(image: Tensor, rows: list[Params]) -> Params:
        def logits(values: Params) -> dict[str, Tensor]:
            outputs = functional_call(model, values, (image[None],))
            return {task: outputs[task][0] for task in tasks}

        outputs, pull = vjp(logits, params)[:2]
        total = {name: torch.zeros_like(value) for name, value in params.items()}
        for row in rows:
            cotangent = {task: row.get(task, torch.zeros_like(z)) for task, z in outputs.items()}
            total = {name: total[name] + powers(grad, power) for name, grad in pull(cotangent)[0].items()}
        return total

    entry = sum(value.numel() * value.element_size() for value in params.values())
    step = max(1, sizes_on(next(iter(params.values())).device).gradients // (2 * entry))
    sums = {name: torch.zeros_like(value) for name, value in params.items()}
    for start in range(0, len(images), step):
        with sdpa_kernel(SDPBackend.MATH):  # vmap runs the fused attention kernels one image at a time, and warns
            rows = [
                {task: values[start : start + step] for task, values in cotangent.items()} for cotangent in cotangents
            ]
            per_image = vmap(of_image)(images[start : start + step], rows)
        for name, values in per_image.items():
            sums[name] += values.sum(0)
    return sums


def _looped(model: nn.Module, params: Params, power: Power, images: Tensor, cotangents: CotangentsPerPass) -> Params:
    values = {name: value.detach().requires_grad_() for name, value in params.items()}
    sums = {name: torch.zeros_like(value) for name, value in params.items()}
    for i in range(len(images)):
        outputs = functional_call(model, values, (images[i : i + 1],))
        for cotangent in cotangents:
            gradients = {task: rows[i : i + 1] for task, rows in cotangent.items() if outputs[task].requires_grad}
            if not gradients:
                continue  # these tasks depend on none of the parameters
            logits = [outputs[task] for task in gradients]
            grads = torch.autograd.grad(
                logits, list(values.values()), list(gradients.values()), retain_graph=True, allow_unused=True
            )
            for name, grad in zip(values, grads, strict=True):
                if grad is not None:
                    sums[name] += powers(grad, power)
    return sums
