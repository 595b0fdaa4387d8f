"""The terms of the objective as pure functions.

Shapes: B images, K classes of a task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from taskgraft.config import Softmax
from taskgraft.types import Outputs, Params, Quadratic

Scale = Literal["T2", "none"]


def cross_entropy(
    outputs: Outputs,
    labels: Mapping[str, Tensor],
    softmax: Softmax,
    *,
    smoothing: float = 0.0,
    weights: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Compute the cross-entropy of each labeled task, summed over tasks; a scalar.

    Args:
        outputs: Task -> logits [B, K].
        labels: Task -> [B] int64; rows with -1 do not count.
        softmax: "per-task" for a softmax per task, "joint" for one over the outputs of all tasks.
        smoothing: Fraction of each label that is spread evenly over the classes of its softmax (Szegedy et al. 2016).
        weights: Task -> weight [K] of each class, 1 for tasks that are left out. Their mean over images should be 1:
            the loss is divided by the number of images, not by the sum of their weights.

    Raises:
        ValueError: There are no labels.
    """
    joint = torch.cat(list(outputs.values()), dim=1).float() if softmax == "joint" else None
    starts = _starts(outputs)
    total: Tensor | None = None
    for task, target in labels.items():
        labeled = target >= 0
        if joint is None:
            logits, shifted = outputs[task].float(), target
        else:
            logits, shifted = joint, torch.where(labeled, target + starts[task], target)
        weight = _weights_of(outputs, [*outputs] if joint is not None else [task], weights)
        summed = F.cross_entropy(logits, shifted, weight, ignore_index=-1, reduction="sum", label_smoothing=smoothing)
        mean = summed / labeled.sum().clamp(min=1)
        total = mean if total is None else total + mean
    if total is None:
        raise ValueError("a batch without labels has no cross-entropy: give at least one task's labels")
    return total


def balanced_weights(labels: Tensor, count: int) -> Tensor:
    """Compute weights of classes by which each counts as much as any other: images / (classes * images of the class).

    Args:
        labels: [N] int64; -1 does not count.
        count: Number of classes; one without images has the weight 1.

    Returns:
        [K] float, whose mean over the images is 1.
    """
    images = torch.bincount(labels[labels >= 0], minlength=count).float()
    present = images > 0
    return torch.where(present, images.sum() / (present.sum() * images.clamp(min=1)), 1.0)


def _weights_of(outputs: Outputs, tasks: Sequence[str], weights: Mapping[str, Tensor] | None) -> Tensor | None:
    """The weights of the classes of tasks, side by side; None without weights."""
    if weights is None:
        return None
    device, counts = next(iter(outputs.values())).device, {task: outputs[task].shape[1] for task in tasks}
    return torch.cat([weights.get(task, torch.ones(count)).to(device)[-count:] for task, count in counts.items()])


def restrict_to_added(outputs: Outputs, labels: Mapping[str, Tensor], task: str, width: int) -> tuple[Outputs, Params]:
    """Restrict outputs and labels of `task` to its added classes, those from `width` on.

    Nothing changes where the batch has an image of an old class: all classes then share one softmax.
    """
    target = labels.get(task)
    if not width or target is None or bool(((target >= 0) & (target < width)).any()):
        return outputs, dict(labels)
    shifted = torch.where(target >= 0, target - width, target)
    return {**outputs, task: outputs[task][:, width:]}, {**labels, task: shifted}


def distillation(logits: Tensor, teacher: Tensor, temperature: float, scale: Scale = "T2") -> Tensor:
    """Compute T^2 mean_i KL(softmax(teacher_i / T) || softmax(logits_i / T)); a scalar >= 0, 0 where they agree.

    Works on log-probabilities, so that no probability underflows. Source: Hinton, Vinyals, Dean 2015, section 2; Li and
    Hoiem 2016, equation 3.

    Args:
        logits: The student's logits [B, K].
        teacher: The teacher's logits [B, K].
        temperature: T > 0.
        scale: "none" leaves T^2 out, as Avalanche, PyCIL and the original LwF do.

    Raises:
        ValueError: The temperature is not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    target = F.log_softmax(teacher.float() / temperature, dim=1)
    student = F.log_softmax(logits.float() / temperature, dim=1)
    divergence = F.kl_div(student, target, reduction="batchmean", log_target=True)
    return divergence * temperature**2 if scale == "T2" else divergence


def logit_matching(logits: Tensor, teacher: Tensor, scale: Tensor) -> Tensor:
    """Compute mean_ik (z_ik - t_ik)^2 / scale of centered logits; a scalar >= 0, 0 for equal ones.

    Differences between logits decide a softmax, so each row is centered first. With the teacher's own `logit_scale` it
    is a fraction, and tasks with few, large logits and tasks with many, small ones count alike. Source: Ba and Caruana
    2014, equation 1.

    Args:
        logits: The student's logits [B, K].
        teacher: The teacher's logits [B, K].
        scale: What the squared errors are measured in, > 0.
    """
    student, target = (z.float() - z.float().mean(1, keepdim=True) for z in (logits, teacher))
    return (student - target).square().mean() / scale


def logit_scale(teacher: Tensor) -> Tensor:
    """Return the mean square of a teacher's centered logits [N, K]; a scalar > 0."""
    target = teacher.float() - teacher.float().mean(1, keepdim=True)
    return target.square().mean().clamp(min=1e-12)


def quadratic(params: Params, penalty: Quadratic) -> Tensor:
    """Compute (strength / 2) sum_j importance_j (params_j - anchor_j)^2; a float64 scalar, differentiable.

    Source: Kirkpatrick et al. 2017, equation 3, whose lambda is the strength.

    Raises:
        KeyError: The penalty names a parameter that `params` lacks.
    """
    total = torch.zeros((), dtype=torch.float64)
    for name, anchor in sorted(penalty.anchor.items()):  # a restored memory has another order, and sums round
        moved = params[name] - anchor
        weight = 1.0 if penalty.importance is None else penalty.importance[name]
        total += (moved.square() * weight).sum().double().cpu()
    return total * (penalty.strength / 2)


def _starts(outputs: Outputs) -> dict[str, int]:
    starts, start = {}, 0
    for task, logits in outputs.items():
        starts[task] = start
        start += logits.shape[1]
    return starts
