"""Batches as a function of the step: which images, which views of them, as normalized tensors.

Shapes: B images of a batch, N images of a set, H x W pixels.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from taskgraft import seeding
from taskgraft.types import Batch, Images, TrainingData

AUGMENT = ("none", "shift", "shift+flip", "crop+flip")
SHIFT = 16  # a shift moves at most size / SHIFT pixels each way
ZOOM = 0.7  # a crop keeps at least this fraction of the side


def build_batch(sources: TrainingData, step: int, size: int) -> Batch:
    """Build the batch of a step.

    Its images are the next `size` ones in an endless sequence of epochs, each a permutation of its own. A batch may
    straddle two epochs, so that no image is left out; the epoch decides each image's view.
    """
    index, epoch = batch_indices(sources, step, size)
    view = epoch % sources.views if sources.views else epoch
    chosen = torch.from_numpy(index)
    labels = {task: target[chosen] for task, target in sources.new.labels.items()}
    images = build_views(sources, index, view)
    return Batch(images, labels, chosen, torch.from_numpy(view))


def batch_indices(sources: TrainingData, step: int, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Compute the image [B] and the epoch [B] of each row of a step's batch."""
    count = len(sources.new.pixels)
    position = np.arange(step * size, (step + 1) * size)
    epoch = position // count
    index = np.array([_order(sources.seed, int(e), count)[p % count] for e, p in zip(epoch, position, strict=True)])
    return index, epoch


def build_views(sources: TrainingData, index: NDArray[np.int64], view: NDArray[np.int64]) -> Tensor:
    """Build augmented views of new images: the same view is the same tensor in every epoch and process.

    Args:
        sources: images, augmentation and seed.
        index: [B] images.
        view: [B] number of each image's view.

    Returns:
        [B, 3, H, W] float, normalized.
    """
    return augment(sources.new, index, view, sources.augment, seeding.derive(sources.seed, "view"))


def normalize(images: Images, start: int, stop: int) -> Tensor:
    """Normalize images start..stop without augmentation: [stop - start, 3, H, W] float."""
    return _normalize(images, images.pixels[start:stop])


def augment(images: Images, index: NDArray[np.int64], view: NDArray[np.int64], augment: str, key: int) -> Tensor:
    """Augment and normalize images; (key, image, view) decides everything that is random.

    Args:
        images: N images; float inputs are used as they are.
        index: [B] images.
        view: [B] number of each image's view.
        augment: one of AUGMENT.
        key: seed, as `seeding.derive` gives it.

    Returns:
        [B, 3, H, W] float.
    """
    chosen = torch.from_numpy(index)
    if augment == "none" or images.pixels.dtype != torch.uint8:
        return _normalize(images, images.pixels[chosen])
    kinds = augment.split("+")
    height, width = images.pixels.shape[1:3]
    flip = (seeding.uniform(key, index, view, 2) < 0.5) & ("flip" in kinds)
    across, down = (seeding.uniform(key, index, view, axis) for axis in (0, 1))
    if "shift" in kinds:
        rows = _shifted(height, down)
        columns = _shifted(width, across)
        columns = np.where(flip[:, None], columns[:, ::-1], columns)
        picked = images.pixels[
            chosen[:, None, None], torch.from_numpy(rows)[:, :, None], torch.from_numpy(columns)[:, None, :]
        ]
        return _normalize(images, picked)
    zoom = ZOOM + (1 - ZOOM) * seeding.uniform(key, index, view, 3)
    return _cropped(_normalize(images, images.pixels[chosen]), zoom, across, down, flip)


def _shifted(size: int, where: NDArray[np.float64]) -> NDArray[np.int64]:
    """Row numbers [B, size] of images moved by up to size / SHIFT pixels; the edge repeats."""
    reach = max(1, size // SHIFT)
    move = np.floor(where * (2 * reach + 1)).astype(np.int64) - reach
    return (np.arange(size) + move[:, None]).clip(0, size - 1)


def _cropped(
    pixels: Tensor,
    zoom: NDArray[np.float64],
    across: NDArray[np.float64],
    down: NDArray[np.float64],
    flip: NDArray[np.bool_],
) -> Tensor:
    theta = np.zeros((len(zoom), 2, 3), dtype=np.float32)
    theta[:, 0, 0] = np.where(flip, -zoom, zoom)
    theta[:, 1, 1] = zoom
    theta[:, 0, 2] = (1 - zoom) * (2 * across - 1)
    theta[:, 1, 2] = (1 - zoom) * (2 * down - 1)
    grid = F.affine_grid(torch.from_numpy(theta), list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _normalize(images: Images, pixels: Tensor) -> Tensor:
    if pixels.dtype != torch.uint8:
        return pixels.float()
    scale = 1 / (255 * torch.tensor(images.std))
    offset = torch.tensor(images.mean) / torch.tensor(images.std)
    return (pixels.float() * scale - offset).permute(0, 3, 1, 2)  # channels-last in memory, for free


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    return seeding.generator(seed, "order", epoch).permutation(count)
