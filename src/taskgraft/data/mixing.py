"""Blends of two images: mixup and CutMix."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from taskgraft.data.placement import take, to_device
from taskgraft.errors import InputError
from taskgraft.types import UNLABELED, Batch


def mix_batch(batch: Batch, mixup: float, cutmix: float, rng: np.random.Generator) -> Batch:
    """Blend each new image of a batch with another one, which lends its label too; other images stay.

    Sources: Zhang et al. 2018 (mixup), Yun et al. 2019 (CutMix); where both are on, each batch draws one of them, as in
    timm.

    Args:
        batch: The batch.
        mixup: The share of the first image is drawn from Beta(mixup, mixup); 0 = no mixup.
        cutmix: The same for CutMix, whose share is an area.
        rng: Random numbers of the step.

    Raises:
        InputError: CutMix is on, and the inputs are no images.
    """
    own = torch.nonzero(batch.rows >= 0).flatten()
    order = torch.from_numpy(rng.permutation(len(own)))
    cut = bool(cutmix) and not (mixup and rng.random() < 0.5)
    if cut and batch.images.dim() != 4:
        raise InputError(f"--cutmix needs images, not inputs of shape {tuple(batch.images.shape[1:])}; use --mixup")
    alpha = cutmix if cut else mixup
    images, share = blend(take(batch.images, own), take(batch.images, own[order]), rng.beta(alpha, alpha), cut, rng)
    partners = {}
    for task, target in batch.labels.items():
        partners[task] = target.clone()
        partners[task][own] = target[own[order]]
    return batch._replace(
        images=batch.images.index_copy(0, to_device(own, batch.images.device), images),
        rows=torch.where(batch.rows >= 0, UNLABELED, batch.rows),
        partners=partners,
        share=share,
    )


def blend(images: Tensor, others: Tensor, share: float, cut: bool, rng: np.random.Generator) -> tuple[Tensor, float]:
    """Blend images with others.

    Args:
        images: [B, ...]; overwritten where `cut`.
        others: [B, ...].
        share: How much of the first is left, in [0, 1].
        cut: Whether to replace a rectangle (CutMix, [B, C, H, W] only) instead of averaging (mixup).
        rng: Decides where the rectangle is.

    Returns:
        [B, ...], and the share in whole pixels.
    """
    if not cut:
        return share * images + (1 - share) * others, share
    height, width = images.shape[2:]
    sizes = [round(side * (1 - share) ** 0.5) for side in (height, width)]
    top, left = (int(rng.integers(0, side - size + 1)) for side, size in zip((height, width), sizes, strict=True))
    rows, columns = slice(top, top + sizes[0]), slice(left, left + sizes[1])
    images[:, :, rows, columns] = others[:, :, rows, columns]
    return images, 1 - sizes[0] * sizes[1] / (height * width)
