"""Tensors from a file that somebody else wrote: safetensors, or a pickle read elsewhere without running its code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from taskgraft.bundle import pickles
from taskgraft.errors import CheckpointError

PREFIXES = ("module.", "_orig_mod.", "model.")
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
POINTER = b"version https://git-lfs"


def load(path: Path, cache: Path | None = None) -> tuple[dict[str, Tensor], dict[str, str], list[str]]:
    """A file's tensors by name, the texts beside them, and what was inferred.

    `cache` keeps what a pickle was made of.

    Raises TaskgraftError for a missing, foreign or damaged file, one whose pickle needs code, or weights not finite.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist or is no file; give a checkpoint, a bundle folder or a timm name")
    with path.open("rb") as file:
        if file.read(len(POINTER)) == POINTER:
            raise CheckpointError(f"{path} is a Git LFS pointer, not the weights; fetch them with: git lfs pull")
    if path.suffix == ".safetensors":
        tensors, rest, found = _safetensors(path), {}, []
    else:
        tensors, rest, found = pickles.read(path, cache)
    for prefix in PREFIXES:
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
            found.append(f"prefix {prefix!r} taken off the names")
    require_finite(path, tensors)
    return tensors, rest, found


def require_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise TaskgraftError for values that are not finite, and for numbers of 8 or 4 bits or with two parts."""
    for name, value in tensors.items():
        if not value.is_floating_point() and not value.is_complex():
            continue
        if value.dtype not in FLOATS:
            kind = str(value.dtype).removeprefix("torch.")
            raise CheckpointError(
                f"{path}: tensor {name!r} holds {kind}; save the weights as float32, float16 or bfloat16"
            )
        if not bool(torch.isfinite(value).all()):
            raise CheckpointError(
                f"{path}: tensor {name!r} holds values that are not finite; save it again from a sound model"
            )


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is no sound safetensors file: {error}; copy it again") from error
