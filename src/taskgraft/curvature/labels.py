"""The labels over which a Fisher diagonal is taken, and the gradients at the logits that follow from them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from taskgraft.seeding import splitmix64

Labels = Literal["exact", "sampled", "empirical"]


class Pass(NamedTuple):
    """One backward pass: for each image of a chunk a label [B] of `task` and the weight [B] of its square."""

    task: str
    labels: Tensor
    weights: Tensor


def list_passes(
    probabilities: Mapping[str, Tensor],
    start: int,
    labels: Labels,
    *,
    targets: Mapping[str, Tensor] | None,
    draws: int,
    seed: int,
) -> list[Pass]:
    """List the backward passes that a chunk of images needs.

    Args:
        probabilities: Task -> float64 [B, K] on the CPU.
        start: Position of the chunk's first image.
        labels: See `fisher_diagonal`.
        targets: Task -> int64 [N], -1 where unlabeled; for "empirical".
        draws: Labels per image and task; for "sampled".
        seed: Random seed of the draws.

    Raises:
        ValueError: A target is no class.
    """
    passes: list[Pass] = []
    for task, p_BK in probabilities.items():
        rows, classes = p_BK.shape
        if labels == "exact":
            passes += [Pass(task, torch.full((rows,), c), p_BK[:, c]) for c in range(classes)]
        elif labels == "sampled":
            weight = torch.full((rows,), 1 / draws, dtype=torch.float64)
            u_DB = torch.from_numpy(hash_uniforms(seed, task, start, rows, draws))
            passes += [Pass(task, _inverse_cdf(p_BK, u_B), weight) for u_B in u_DB]
        elif targets is not None:
            labeled = targets[task] >= 0
            if int(targets[task].max()) >= classes:
                raise ValueError(f"targets[{task!r}] exceed the task's {classes} classes: count them from 0")
            chunk = targets[task][start : start + rows].cpu()
            # The mean is over the labeled images of the task; the caller divides by all images.
            scale = labeled.numel() / int(labeled.sum())
            passes.append(Pass(task, chunk.clamp(min=0), (chunk >= 0).double() * scale))
    return passes


def join_targets(targets: Mapping[str, Tensor], widths: Mapping[str, int]) -> Tensor:
    """Return labels [N] among the concatenated outputs of all tasks, whose widths are given; -1 where unlabeled.

    An image that is labeled for several tasks counts for the first of them.
    """
    joined = torch.full_like(next(iter(targets.values())), -1)
    start = 0
    for task, width in widths.items():
        if task in targets:
            joined = torch.where((joined < 0) & (targets[task] >= 0), targets[task] + start, joined)
        start += width
    return joined


def compute_cotangent(p_BK: Tensor, item: Pass) -> Tensor:
    """Compute √w · d log p_c / dz = √w · (onehot(c) − p) as float64 [B, K]; its square carries the weight w."""
    gradient_BK = -p_BK
    gradient_BK[torch.arange(len(p_BK)), item.labels] += 1
    return gradient_BK * item.weights.sqrt()[:, None]


def hash_uniforms(seed: int, task: str, start: int, rows: int, draws: int) -> NDArray[np.float64]:
    """Hash (seed, task, position, draw) to uniform numbers in [0, 1), as [draws, rows].

    A generator would make a number depend on those drawn before it, so on the size of the chunks.
    """
    digest = hashlib.blake2b(f"{seed}/{task}".encode(), digest_size=8).digest()
    key = np.array([int.from_bytes(digest, "little")], dtype=np.uint64)
    position = np.arange(start, start + rows, dtype=np.uint64)[None, :]
    draw = np.arange(draws, dtype=np.uint64)[:, None]
    word = splitmix64(splitmix64(key + position) + draw)
    return (word >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _inverse_cdf(p_BK: Tensor, u_B: Tensor) -> Tensor:
    """Draw a class from each row by inverting its cumulative distribution at u."""
    below = p_BK.cumsum(1) <= u_B[:, None]
    return below.sum(1).clamp(max=p_BK.shape[1] - 1)  # rounding may leave the last sum below 1
