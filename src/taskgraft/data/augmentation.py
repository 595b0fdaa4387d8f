"""Batches as a function of the step: augmented views of images as normalized tensors.

Shapes: B images of a batch, N images of a set, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from taskgraft import seeding
from taskgraft.data.placement import take, to_device
from taskgraft.types import UNLABELED, Batch, Images, TrainingData

CPU = torch.device("cpu")
AUGMENT = ("none", "shift", "shift+flip", "crop+flip", "resized-crop+flip", "randaugment")
SHIFT = 16  # a shift moves at most size / SHIFT pixels each way
MIN_CROP = 0.7  # a crop keeps at least this fraction of the side
MIN_AREA, ASPECT = 0.35, 4 / 3  # a resized crop keeps this fraction of the area; its aspect changes at most so much


def build_batch(sources: TrainingData, step: int, size: int, device: torch.device = CPU) -> Batch:
    """Build the batch of a step, with its images on `device`: pixels are copied as bytes, and normalized there.

    Its images are the next `size` ones in an endless sequence of epochs, each a permutation of its own. A batch may
    straddle two epochs, so that no image is left out; the epoch decides each image's view. The second half are
    unlabeled images, where there are any, each time in a fresh view.
    """
    if sources.unlabeled is not None and size > 1:
        labeled = build_batch(sources._replace(unlabeled=None), step, size - size // 2, device)
        return append_images(labeled, _unlabeled_views(sources, step, size // 2, device), {}, UNLABELED)
    index, epoch = batch_indices(sources, step, size)
    view = epoch % sources.views if sources.views else epoch
    rows = torch.from_numpy(index)
    labels = {task: target[rows] for task, target in sources.new.labels.items()}
    return Batch(build_views(sources, index, view, device), labels, rows, torch.from_numpy(view))


def batch_indices(sources: TrainingData, step: int, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Compute the image [B] and the epoch [B] of each row of a step's batch."""
    count = len(sources.new.pixels)
    epoch, place = np.divmod(np.arange(step * size, (step + 1) * size), count)
    index = np.empty_like(place)
    for number in range(int(epoch[0]), int(epoch[-1]) + 1):
        rows = epoch == number
        index[rows] = _permutation(sources.seed, number, count)[place[rows]]
    return index, epoch


def append_images(batch: Batch, images: Tensor, labels: Mapping[str, Tensor], row: int) -> Batch:
    """Append images that are not of the new set to a batch.

    Args:
        batch: the batch.
        images: [A, ...] preprocessed images, on whatever device.
        labels: task -> [A] int64; tasks that are left out get -1.
        row: MIXED_IN or UNLABELED.
    """
    count, added = len(batch.images), len(images)

    def merge(present: Mapping[str, Tensor]) -> dict[str, Tensor]:
        merged = {}
        for task in sorted({*present, *labels}):
            new = present.get(task, torch.full((count,), -1))
            merged[task] = torch.cat([new, labels.get(task, torch.full((added,), -1)).cpu()])
        return merged

    rows, view = torch.cat([batch.rows, torch.full((added,), row)]), torch.cat([batch.view, torch.full((added,), -1)])
    return batch._replace(
        images=torch.cat([batch.images, to_device(images, batch.images.device)]),
        labels=merge(batch.labels),
        rows=rows,
        view=view,
        partners=None if batch.partners is None else merge(batch.partners),
    )


def _unlabeled_views(sources: TrainingData, step: int, count: int, device: torch.device) -> Tensor:
    assert sources.unlabeled is not None
    seed = seeding.derive(sources.seed, "unlabeled")
    index, epoch = batch_indices(sources._replace(new=sources.unlabeled, seed=seed), step, count)
    return augment(sources.unlabeled, index, epoch, sources.augment, seeding.derive(seed, "view"), device)


def build_views(
    sources: TrainingData, index: NDArray[np.int64], view: NDArray[np.int64], device: torch.device = CPU
) -> Tensor:
    """Build augmented views of new images: the same view is the same tensor in every epoch and process.

    Args:
        sources: images, augmentation and seed.
        index: [B] images.
        view: [B] number of each image's view.
        device: where they are wanted.

    Returns:
        [B, C, H, W] float, normalized.
    """
    return augment(sources.new, index, view, sources.augment, seeding.derive(sources.seed, "view"), device)


def normalize(images: Images, start: int, stop: int, device: torch.device = CPU) -> Tensor:
    """Normalize images start..stop without augmentation, on `device`: [stop - start, C, H, W] float."""
    return _normalize(images, to_device(images.pixels[start:stop], device))


def augment(
    images: Images,
    index: NDArray[np.int64],
    view: NDArray[np.int64],
    augment: str,
    key: int,
    device: torch.device = CPU,
) -> Tensor:
    """Augment and normalize images; (key, image, view) decides everything that is random.

    Args:
        images: N images; float inputs are used as they are.
        index: [B] images.
        view: [B] number of each image's view.
        augment: one of AUGMENT.
        key: seed, as `seeding.derive` gives it.
        device: where the views are computed and stay.

    Returns:
        [B, C, H, W] float.
    """
    rows = torch.from_numpy(index)
    if images.pixels.device != device:  # the bytes of this batch alone
        images, rows = images._replace(pixels=to_device(images.pixels[rows], device)), torch.arange(len(rows))
    if augment == "none" or images.pixels.dtype != torch.uint8:
        return _normalize(images, take(images.pixels, rows))
    kinds = augment.split("+")
    if "randaugment" in kinds:
        from taskgraft.data.randaugment import randaugment

        fill = [255 * mean for mean in images.mean]
        images = images._replace(pixels=randaugment(take(images.pixels, rows), index, view, key, fill))
        rows, kinds = torch.arange(len(rows)), ["shift", "flip"]
    height, width = images.pixels.shape[1:3]
    flip = (seeding.uniform(key, index, view, 2) < 0.5) & ("flip" in kinds)
    x, y = (seeding.uniform(key, index, view, axis) for axis in (0, 1))
    if "shift" in kinds:
        source_x = _shift(width, x)
        source_x = to_device(torch.from_numpy(np.where(flip[:, None], source_x[:, ::-1], source_x)), device)
        source_y, rows = to_device(torch.from_numpy(_shift(height, y)), device), to_device(rows, device)
        return _normalize(images, images.pixels[rows[:, None, None], source_y[:, :, None], source_x[:, None, :]])
    zoom = seeding.uniform(key, index, view, 3)
    if "resized-crop" in kinds:
        side = np.sqrt(MIN_AREA + (1 - MIN_AREA) * zoom)
        stretch = ASPECT ** (seeding.uniform(key, index, view, 4) - 0.5)  # the root of the aspect ratio
        scale_x, scale_y = np.minimum(side * stretch, 1), np.minimum(side / stretch, 1)
    else:
        scale_x = scale_y = MIN_CROP + (1 - MIN_CROP) * zoom
    return _crop(_normalize(images, take(images.pixels, rows)), scale_x, scale_y, x, y, flip)


def _shift(size: int, position: NDArray[np.float64]) -> NDArray[np.int64]:
    """Source coordinates [B, size] of images moved by up to size / SHIFT pixels; the edge repeats."""
    limit = max(1, size // SHIFT)
    offset = np.floor(position * (2 * limit + 1)).astype(np.int64) - limit
    return (np.arange(size) + offset[:, None]).clip(0, size - 1)


def _crop(
    pixels: Tensor,
    scale_x: NDArray[np.float64],
    scale_y: NDArray[np.float64],
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    flip: NDArray[np.bool_],
) -> Tensor:
    theta = np.zeros((len(x), 2, 3), dtype=np.float32)
    theta[:, 0, 0] = np.where(flip, -scale_x, scale_x)
    theta[:, 1, 1] = scale_y
    theta[:, 0, 2] = (1 - scale_x) * (2 * x - 1)
    theta[:, 1, 2] = (1 - scale_y) * (2 * y - 1)
    grid = F.affine_grid(to_device(torch.from_numpy(theta), pixels.device), list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _normalize(images: Images, pixels: Tensor) -> Tensor:
    if pixels.dtype != torch.uint8:
        return pixels.float()
    scale, offset = _scale_and_offset(images.mean, images.std, pixels.device)
    return (pixels.float() * scale - offset).permute(0, 3, 1, 2)  # channels-last in memory, for free


@lru_cache(maxsize=16)
def _scale_and_offset(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False):  # they are kept, and used in training too
        scale, offset = 1 / (255 * torch.tensor(std)), torch.tensor(mean) / torch.tensor(std)
        return to_device(scale, device), to_device(offset, device)


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    return seeding.generator(seed, "order", epoch).permutation(count)
