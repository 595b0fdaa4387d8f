"""A cache of computed tensors in a folder, keyed by a digest of everything that they depend on.

A damaged file counts as missing. The folder holds at most LIMIT bytes; the least recently used files go first.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from taskgraft.results.files import atomic, fingerprint
from taskgraft.types import Memoize, Params

FORMAT = "1"  # raise it when the same names would mean other tensors
LIMIT = 2 * 2**30  # bytes of all files
LARGEST_FILE = LIMIT // 4  # bytes; what is larger takes long to read and would push everything else out
STALE = 86_400.0  # seconds after which a partial file counts as left behind by a killed process
DIGEST = "sha256"  # in a file's header: over its tensors


def memoize_in(folder: Path, *about: str) -> Memoize:
    """Return a function that computes tensors the first time and afterwards reads them: the same bits, on the CPU.

    Args:
        folder: Where the files are.
        about: What all tensors depend on in addition to their names.
    """

    def recall(name: str, make: Callable[[], Params]) -> Params:
        file = folder / f"{fingerprint([FORMAT, *about, name])[:32]}.safetensors"
        tensors = _read(file)
        if tensors is None:
            tensors = {part: value.detach().cpu().contiguous() for part, value in make().items()}
            if sum(value.nbytes for value in tensors.values()) <= LARGEST_FILE:
                with suppress(OSError, SafetensorError):  # a folder that cannot be written is slower, no more
                    _write(file, tensors)
        return tensors

    return recall


def tensor_digest(tensors: Params) -> str:
    """Return the SHA-256 over names, types, shapes, layouts and bits."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach()
        total.update(f"{name} {value.dtype} {tuple(value.shape)} {value.stride()}\n".encode())
        bits: Any = value.cpu().contiguous().flatten().view(torch.uint8).numpy()
        total.update(bits)
    return total.hexdigest()


def _read(file: Path) -> Params | None:
    try:
        with safe_open(file, "pt") as opened:
            # copied: a file's tensors lie at any address, and a product's bits may depend on how they are aligned
            tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118 - no dictionary
            if opened.metadata()[DIGEST] != tensor_digest(tensors):
                return None
        os.utime(file)
    except (OSError, SafetensorError, KeyError, TypeError):
        return None
    return tensors


def _write(file: Path, tensors: dict[str, Tensor]) -> None:
    with atomic(file) as aside:
        save_file(tensors, aside, {DIGEST: tensor_digest(tensors)})
    _trim(file.parent, file)


def _trim(folder: Path, newest: Path) -> None:
    """Remove the least recently used files until the rest fits; other processes may do so too."""
    files: list[tuple[float, int, Path]] = []
    for path in folder.iterdir():
        with suppress(OSError):
            state = path.stat()
            if path.name.startswith("."):
                if state.st_mtime < time.time() - STALE:
                    path.unlink()
            elif path != newest:
                files.append((state.st_mtime, state.st_size, path))
    total = newest.stat().st_size
    for _, size, path in sorted(files, reverse=True):
        total += size
        if total > LIMIT:
            path.unlink(missing_ok=True)
