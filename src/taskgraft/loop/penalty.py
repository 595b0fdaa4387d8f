"""Quadratic penalties at work on the weights: a gradient, or a proximal step. No loop over tensors, no graph."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from taskgraft.types import Params, Quadratic


def add_gradients(params: Params, penalties: Collection[Quadratic]) -> None:
    """Add strength * importance * (theta - anchor) to the gradients, for the penalties that are explicit."""
    for item in penalties:
        if item.implicit:
            continue
        theta, anchor, importance = _aligned(params, item)
        for value in theta:
            if value.grad is None:  # heads of old tasks, where no term of the loss touches them
                value.grad = torch.zeros_like(value)
        moved = torch._foreach_sub([value.detach() for value in theta], anchor)
        torch._foreach_mul_(moved, importance)
        gradients = [value.grad for value in theta if value.grad is not None]
        torch._foreach_add_(gradients, moved, alpha=item.strength)


def step_towards(params: Params, penalties: Collection[Quadratic], rate: float) -> None:
    """The proximal step theta <- (theta + sum_k a_k anchor_k) / (1 + sum_k a_k), a = rate * strength * importance.

    Written as theta + sum_k a_k / (1 + sum a) * (anchor_k - theta): exact where nothing has moved. Stable for any
    strength. With one penalty this is the minimiser of |theta' - theta|^2 / (2 rate) + its quadratic.
    """
    implicit = [item for item in penalties if item.implicit]
    if not implicit:
        return
    with torch.no_grad():
        if len(implicit) == 1:
            _pull(params, implicit[0], rate)
        else:
            _pull_all(params, implicit, rate)


def _pull(params: Params, item: Quadratic, rate: float) -> None:
    theta, anchor, importance = _aligned(params, item)
    share = torch._foreach_mul(importance, rate * item.strength)
    below = torch._foreach_add(share, 1.0)
    torch._foreach_div_(share, below)
    torch._foreach_lerp_([value.detach() for value in theta], anchor, share)


def _pull_all(params: Params, items: list[Quadratic], rate: float) -> None:
    for name, value in params.items():
        touching = [item for item in items if name in item.anchor]
        if not touching:
            continue
        pulls = [rate * item.strength * item.importance[name] for item in touching]
        below = 1 + torch.stack(pulls).sum(0)
        toward = [pull / below * (item.anchor[name] - value) for pull, item in zip(pulls, touching, strict=True)]
        value.add_(torch.stack(toward).sum(0))


def _aligned(params: Params, item: Quadratic) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    names = [name for name in item.anchor if name in params]
    return [params[n] for n in names], [item.anchor[n] for n in names], [item.importance[n] for n in names]
