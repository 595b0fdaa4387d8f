"""How much is computed at once: what a processor's cache holds, or what keeps a GPU busy and fits into its memory."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch


class Sizes(NamedTuple):
    """Limits of one pass. They affect rounding only.

    Attributes:
        images: images of a forward pass.
        activations: bytes of their activations, which keeps large images from filling the memory.
        tile: entries of per-sample gradients held at once.
        gradients: bytes of per-sample gradients that the fallback holds at once, and as much again for their powers.
    """

    images: int
    activations: int
    tile: int
    gradients: int


# Throughput is flat from 32 images up; a tile is 2 MB of float32, about a core's second-level cache.
CPU = Sizes(images=32, activations=2**30, tile=2**19, gradients=64 * 2**20)
# Four times as fast on an H200 as with the sizes above (ResNet-18 and ResNet-50, 224 px), whose kernels are too short.
GPU = Sizes(images=128, activations=2**35, tile=2**27, gradients=2**31)
SHARE = 16  # a GPU's free memory divided by this limits each of the three that take memory


def sizes_on(device: torch.device) -> Sizes:
    """Return the sizes for a device."""
    return _sizes_on_gpu(device) if device.type == "cuda" else CPU


@lru_cache
def _sizes_on_gpu(device: torch.device) -> Sizes:
    return fit(torch.cuda.mem_get_info(device)[0])


def fit(free: int) -> Sizes:
    """Return a GPU's sizes for `free` bytes of memory, never less than a processor's."""
    limit = free // SHARE
    return Sizes(
        GPU.images,
        max(CPU.activations, min(GPU.activations, 4 * limit)),
        max(CPU.tile, min(GPU.tile, limit // 4)),
        max(CPU.gradients, min(GPU.gradients, limit)),
    )
