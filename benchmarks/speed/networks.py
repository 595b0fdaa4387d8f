"""What all rivals share: the network, and images in memory. A case says arch, size (pixels), batch, images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn

OLD, NEW = 196, 9  # classes, as in the project's car models and colours
MEAN, STD = (0.5,) * 3, (0.25,) * 3
LR = 1e-4
Case = Mapping[str, Any]


def network(case: Case, classes: int = NEW) -> nn.Module:
    """A timm network with seeded weights; one of fixed input size is built for the case's."""
    torch.manual_seed(0)
    config = timm.get_pretrained_cfg(case["arch"])
    sized = {"img_size": case["size"]} if config is not None and config.fixed_input_size else {}
    return timm.create_model(case["arch"], num_classes=classes, **sized)


def pixels(case: Case, count: int | None = None) -> Tensor:
    """Noise [N, size, size, 3] uint8: what is in an image changes no timing."""
    shape = (count or case["images"], case["size"], case["size"], 3)
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def labels(count: int, classes: int = NEW) -> Tensor:
    """Every class in turn [N]."""
    return torch.arange(count) % classes


def normalized(found: Tensor, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
    """uint8 [B, H, W, 3] -> float [B, 3, H, W], as every loader in the world does it."""
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (MEAN, STD))
    return ((found.permute(0, 3, 1, 2).float() / 255 - mean) / std).contiguous(memory_format=memory_format)
