"""Tensors from a file that somebody else wrote: safetensors, or a pickle read without running its code."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from taskgraft.problem import Problem

# where training programs put the weights, best first: an average of weights is what their authors evaluate
CONTAINERS = (
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema",
    "state_dict",
    "model_state_dict",
    "model",
    "net",
)
PREFIXES = ("module.", "_orig_mod.", "model.")
POINTER = b"version https://git-lfs"


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], list[str]]:
    """A file's tensors by name, the rest of its top level, and what was inferred.

    Raises Problem for a missing, foreign or damaged file, one whose pickle needs code, or weights not finite.
    """
    if not path.is_file():
        raise Problem(f"{path} does not exist or is no file; give a checkpoint, a bundle folder or a timm name")
    with path.open("rb") as file:
        if file.read(len(POINTER)) == POINTER:
            raise Problem(f"{path} is a Git LFS pointer, not the weights; fetch them with: git lfs pull")
    top = _safetensors(path) if path.suffix == ".safetensors" else _pickle(path)
    found: list[str] = []
    tensors = _tensors(top, path, found)
    for prefix in PREFIXES:
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
            found.append(f"prefix {prefix!r} taken off the names")
    for name, value in tensors.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise Problem(f"{path}: tensor {name!r} holds values that are not finite; the checkpoint is damaged")
    return tensors, {key: value for key, value in top.items() if not isinstance(value, Tensor)}, found


def _tensors(top: Mapping[str, Any], path: Path, found: list[str]) -> dict[str, Tensor]:
    for name in CONTAINERS:
        inner = top.get(name)
        if isinstance(inner, Mapping) and any(isinstance(value, Tensor) for value in inner.values()):
            found.append(f"weights from its entry {name!r}")
            return {str(key): value for key, value in inner.items() if isinstance(value, Tensor)}
    tensors = {str(key): value for key, value in top.items() if isinstance(value, Tensor)}
    if not tensors:
        raise Problem(f"{path} holds no tensors; its entries are {', '.join(map(str, list(top)[:8]))}")
    return tensors


def _safetensors(path: Path) -> dict[str, Any]:
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise Problem(f"{path} is no sound safetensors file: {error}") from error


def _pickle(path: Path) -> dict[str, Any]:
    try:
        top = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = [line.strip() for line in str(error).splitlines() if "GLOBAL" in line]
        reason = wanted[0] if wanted else "it holds more than tensors"
        raise Problem(
            f"{path} was not loaded: opening it would run code from the file ({reason[:160]}). "
            "Where it was made, save only the weights: torch.save(model.state_dict(), …)"
        ) from error
    except Exception as error:  # the reader raises anything on damaged files; none of it is a crash
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise Problem(f"{path} is no sound PyTorch checkpoint: {reason[:160]}") from error
    if not isinstance(top, Mapping):
        raise Problem(f"{path} holds a {type(top).__name__}, not named tensors; save model.state_dict()")
    return {str(key): value for key, value in top.items()}
