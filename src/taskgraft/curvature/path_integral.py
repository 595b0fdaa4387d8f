"""How much each parameter contributed to lowering the loss: the path integral of synaptic intelligence.

Omega_j = max(0, sum over steps of -gradient_j * movement_j / ((total movement_j)^2 + damping)) (Zenke et al. 2017).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from taskgraft import pytree
from taskgraft.types import Params, Update


def add_to_path(path: Params, update: Update) -> None:
    """Add -gradient * movement of one step to `path`, in place, for the parameters that it holds."""
    for name, gradient in update.gradient.items():
        if name in path:
            after, before = update.after[name], update.before[name]
            for block, gradient_block, new, old in pytree.blocks(path[name], gradient, after, before):
                block.addcmul_(gradient_block, (old - new).div_(update.scale))


def path_importance(path: Params, start: Params, now: Mapping[str, Tensor], damping: float) -> Params:
    """Return the importance of each parameter from its path and its movement from `start` to `now`.

    Args:
        path: What `add_to_path` added up.
        start: Parameters before the first step.
        now: Parameters after the last one.
        damping: Keeps parameters that hardly moved from counting without bounds, > 0.
    """
    importance = {}
    for name, total in path.items():
        moved = now[name].detach() - start[name]
        importance[name] = (total / (moved.square() + damping)).clamp(min=0)
    return importance
