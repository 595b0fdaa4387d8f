"""Operations on nested dictionaries of tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from taskgraft.types import Memory, Params

BLOCK = 2**17  # elements: four float32 operands take 2 MiB, about a core's own cache


def state(module: nn.Module) -> Params:
    """Return copies of the parameters and buffers of a module: name -> tensor, detached, on the same device."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def flatten(memory: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of nested dictionaries with their paths, joined by '/'.

    Raises:
        TypeError: A leaf is no tensor; memory must be saved without pickle.
    """
    for key, value in memory.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from flatten(value, path + "/")
        elif isinstance(value, Tensor):
            yield path, value
        else:
            raise TypeError(f"memory entry {path!r} is a {type(value).__name__}; only tensors can be kept")


def unflatten(flat: Mapping[str, Tensor]) -> Memory:
    """Undo `flatten`.

    Raises:
        ValueError: One path lies below another.
    """
    memory: Memory = {}
    for path, value in flat.items():
        *parents, leaf = path.split("/")
        node = memory
        for key in parents:
            node = node.setdefault(key, {})
            if isinstance(node, Tensor):
                raise ValueError(f"{path!r} lies below another tensor")
        if leaf in node:
            raise ValueError(f"{path!r} lies above another tensor")
        node[leaf] = value
    return memory


def lerp(start: Params, end: Params, weight: float) -> Params:
    """Compute start + weight (end - start); integer buffers are those of `end`, weights 0 and 1 are exact.

    Raises:
        KeyError: The two have different names.
    """
    if start.keys() != end.keys():
        raise KeyError(f"cannot interpolate: names differ: {sorted(start.keys() ^ end.keys())[:5]}")
    return {
        name: torch.lerp(value, end[name], weight) if value.is_floating_point() else end[name].clone()
        for name, value in start.items()
    }


def blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield matching views of tensors of one shape, small enough for a CPU cache; writing to one writes to its tensor.

    Dense tensors of equal strides are cut in memory order; others come as one block.
    """
    first, size = tensors[0], tensors[0].numel()
    same_layout = all(value.stride() == first.stride() for value in tensors)
    dense = first.is_contiguous() or (first.dim() == 4 and first.is_contiguous(memory_format=torch.channels_last))
    if size <= BLOCK or not same_layout or not dense:
        yield tensors
        return
    flat = [value.detach().as_strided((size,), (1,)) for value in tensors]
    for start, stop in pairwise([*range(0, size, BLOCK), size]):
        yield tuple(value[start:stop] for value in flat)
