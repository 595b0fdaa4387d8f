"""Which tensors are on which device: pixels that stay on a GPU, and transfers that nothing waits for.

On a CPU every function here returns its argument, so that both take the same path.
"""

from __future__ import annotations

import torch
from torch import Tensor

from taskgraft.types import Images

SHARE = 0.25  # of a device's free memory that the pixels of one set may take


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device; the host goes on meanwhile, since a GPU copies from pinned memory by itself."""
    if tensor.device == device:
        return tensor
    if tensor.device.type == "cpu" and device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def take(values: Tensor, rows: Tensor) -> Tensor:
    """Return `values[rows]` for indices or a mask on the CPU, without waiting for the device that holds the values."""
    if rows.dtype == torch.bool:
        rows = rows.nonzero().flatten()  # on a GPU the size of the result would have to be waited for
    return values[to_device(rows, values.device)]


def place(images: Images, device: torch.device, free: int | None = None) -> Images:
    """Move the pixels of a set to a device for good, if they fit into a share of its free memory.

    Args:
        images: the set; where it does not fit it stays, and its batches are copied one by one.
        device: the device of training.
        free: the device's free memory in bytes; None = ask it.

    Returns:
        The set.
    """
    if images.pixels.device == device:
        return images
    if free is None:
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
    return images._replace(pixels=images.pixels.to(device)) if images.pixels.nbytes <= SHARE * free else images
