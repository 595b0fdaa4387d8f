"""RandAugment: random operations on colors and geometry, each decided by an image's position in the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from taskgraft import seeding

OPERATIONS_PER_IMAGE, MAGNITUDE = 2, 9 / 30  # torchvision's defaults: two operations at magnitude 9 of 30
FIRST_DRAW = 10  # number of the first random draw; those below belong to `augmentation`

Operation = Callable[[Tensor, float, list[float]], Tensor]  # (image [C, H, W] uint8, sign, fill) -> image


def _affine(image: Tensor, fill: list[float], *, angle: float = 0.0, move: tuple[float, float] = (0, 0),
            shear: tuple[float, float] = (0, 0)) -> Tensor:  # fmt: skip
    return F.affine(
        image, angle=angle, translate=[round(move[0] * image.shape[-1]), round(move[1] * image.shape[-2])], scale=1.0,
        shear=list(shear), interpolation=InterpolationMode.BILINEAR, fill=fill,
    )  # fmt: skip


SHEAR = float(np.degrees(np.arctan(0.3 * MAGNITUDE)))
MOVE, TURN, CHANGE = 150 / 331 * MAGNITUDE, 30 * MAGNITUDE, 0.9 * MAGNITUDE
OPERATIONS: tuple[Operation, ...] = (
    lambda image, sign, fill: image,
    lambda image, sign, fill: _affine(image, fill, shear=(sign * SHEAR, 0)),
    lambda image, sign, fill: _affine(image, fill, shear=(0, sign * SHEAR)),
    lambda image, sign, fill: _affine(image, fill, move=(sign * MOVE, 0)),
    lambda image, sign, fill: _affine(image, fill, move=(0, sign * MOVE)),
    lambda image, sign, fill: _affine(image, fill, angle=sign * TURN),
    lambda image, sign, fill: F.adjust_brightness(image, 1 + sign * CHANGE),
    lambda image, sign, fill: F.adjust_saturation(image, 1 + sign * CHANGE),
    lambda image, sign, fill: F.adjust_contrast(image, 1 + sign * CHANGE),
    lambda image, sign, fill: F.adjust_sharpness(image, 1 + sign * CHANGE),
    lambda image, sign, fill: F.posterize(image, 8 - round(4 * MAGNITUDE)),
    lambda image, sign, fill: F.solarize(image, 255 * (1 - MAGNITUDE)),
    lambda image, sign, fill: F.autocontrast(image),
    lambda image, sign, fill: F.equalize(image),
)


def randaugment(
    pixels: Tensor, index: NDArray[np.int64], view: NDArray[np.int64], key: int, fill: Sequence[float]
) -> Tensor:
    """Apply random operations; (key, image, view) decides them. Source: Cubuk et al. 2020, as torchvision has it.

    torchvision's own transform draws from torch's global generator; its operations are used here, with draws that do
    not depend on what was drawn before.

    Args:
        pixels: [B, H, W, C] uint8.
        index: [B] images.
        view: [B] number of each image's view.
        key: Seed, as `seeding.derive` gives it.
        fill: Color of what moves in from outside, 0 to 255.

    Returns:
        [B, H, W, C] uint8.
    """
    images = list(pixels.permute(0, 3, 1, 2))
    for draw in range(FIRST_DRAW, FIRST_DRAW + 2 * OPERATIONS_PER_IMAGE, 2):
        chosen = (seeding.uniform(key, index, view, draw) * len(OPERATIONS)).astype(int)
        signs = np.where(seeding.uniform(key, index, view, draw + 1) < 0.5, -1.0, 1.0)
        images = [
            OPERATIONS[operation](image, sign, list(fill))
            for image, operation, sign in zip(images, chosen.tolist(), signs.tolist(), strict=True)
        ]
    return torch.stack(images).permute(0, 2, 3, 1)
