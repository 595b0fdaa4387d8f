"""Quadratic penalties on the weights, as a gradient or as a proximal step. No graph, and little memory traffic.

Large tensors are processed in blocks that stay in the CPU cache, with one scratch buffer: whole-tensor operations
would write and read each intermediate from memory, which costs several times as much as the computation.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from taskgraft import pytree
from taskgraft.config import TrainingConfig
from taskgraft.types import Params, Quadratic

TINY = 1e-37  # keeps 0 / 0 away where a strength is so large that its inverse is no float32


def choose_form(penalties: Mapping[str, Quadratic], config: TrainingConfig) -> dict[str, Quadratic]:
    """Replace `implicit="auto"`: by the proximal step, except for AdamW under a joint softmax.

    AdamW divides the loss's gradient by its own size, so that every weight moves by about the learning rate. A proximal
    step is not divided, and where one softmax makes the new outputs outvote the old ones it either loses against such
    moves or stops them altogether. Inside the loss, both pulls are divided alike. With a softmax for each task, or SGD,
    the proximal step does as well, and it is stable for any strength (`docs/decisions.md`, 88).
    """
    implicit = not (config.softmax == "joint" and config.optimizer == "adamw")
    return {
        name: item._replace(implicit=implicit) if item.implicit == "auto" else item for name, item in penalties.items()
    }


def add_gradients(params: Params, penalties: Collection[Quadratic]) -> None:
    """Add strength * importance * (theta - anchor) to the gradients of `params`, for explicit penalties."""
    with torch.no_grad():
        for item in penalties:
            if item.implicit or not item.strength:
                continue
            for name, anchor in item.anchor.items():
                theta = params[name]
                if theta.grad is None:  # heads of old tasks, where no term of the loss touches them
                    theta.grad = torch.zeros_like(theta)
                if item.importance is None:
                    theta.grad.add_(theta - anchor, alpha=item.strength)
                    continue
                for gradient, value, target, weight in pytree.blocks(theta.grad, theta, anchor, item.importance[name]):
                    gradient.addcmul_(value - target, weight, value=item.strength)


def step_towards(
    params: Params,
    penalties: Collection[Quadratic],
    lr: float,
    keep: Tensor | None = None,
    lr_scales: Mapping[str, float] | None = None,
) -> None:
    """Take the proximal step theta <- (theta + sum_k a_k anchor_k) / (1 + sum_k a_k), a = lr * strength * importance.

    Written as theta + sum_k a_k / (1 + sum a) * (anchor_k - theta): exact where nothing has moved. Stable for any
    strength. With one penalty this is the minimizer of |theta' - theta|^2 / (2 lr) + its quadratic. Explicit penalties
    are skipped. With `keep`, 1.0 or 0.0 on the device of the parameters, the step counts or does not. `lr_scales` has a
    factor of the learning rate for each parameter.
    """
    implicit = [item for item in penalties if item.implicit]
    if lr_scales:
        for scale in sorted(set(lr_scales.values())):
            chosen = {name: value for name, value in params.items() if lr_scales[name] == scale}
            parts = [
                item._replace(anchor={name: anchor for name, anchor in item.anchor.items() if name in chosen})
                for item in implicit
            ]
            step_towards(chosen, parts, lr * scale, keep)
        return
    with torch.no_grad():
        if len(implicit) == 1:
            _step_towards_one(params, implicit[0], lr, keep)
        elif implicit:
            _step_towards_several(params, implicit, lr, keep)


def _step_towards_one(params: Params, item: Quadratic, lr: float, keep: Tensor | None) -> None:
    """Move by a / (1 + a), computed as importance / (importance + 1 / (lr * strength)): one division fewer."""
    if not item.strength * lr:
        return
    offset = max(1 / (lr * item.strength), TINY)
    for name, anchor in item.anchor.items():
        if item.importance is None:
            pull = lr * item.strength
            fraction = pull / (pull + 1.0)
            params[name].lerp_(anchor, fraction if keep is None else fraction * keep)
            continue
        for theta, target, weight in pytree.blocks(params[name], anchor, item.importance[name]):
            denominator = weight + offset
            fraction = torch.div(weight, denominator, out=denominator)
            theta.lerp_(target, fraction if keep is None else fraction.mul_(keep))


def _step_towards_several(params: Params, items: list[Quadratic], lr: float, keep: Tensor | None) -> None:
    for name, value in params.items():
        relevant = [item for item in items if name in item.anchor]
        if not relevant:
            continue
        pulls = [
            lr * item.strength * (torch.ones_like(value) if item.importance is None else item.importance[name])
            for item in relevant
        ]
        denominator = 1 + torch.stack(pulls).sum(0)
        steps = [pull / denominator * (item.anchor[name] - value) for pull, item in zip(pulls, relevant, strict=True)]
        step = torch.stack(steps).sum(0)
        value.add_(step if keep is None else step * keep)
