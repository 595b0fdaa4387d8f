"""A cache of computed tensors in a folder, keyed by a digest of everything that they depend on.

A damaged file counts as missing. The folder holds at most MAX_SIZE bytes; the least recently used files go first.
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

from taskgraft.results.files import atomic, fingerprint
from taskgraft.types import Memoize, Params

FORMAT = "1"  # raise it when the same names would mean other tensors
MAX_SIZE = 2 * 2**30  # bytes of all files
MAX_FILE_SIZE = MAX_SIZE // 4  # bytes; what is larger takes long to read and would push everything else out
STALE_SECONDS = 86_400.0  # after which a partial file counts as left behind by a killed process
DIGEST = "sha256"  # in a file's header: over its tensors


def memoize_in(folder: Path, *keys: str) -> Memoize:
    """Return a function that computes tensors the first time and afterwards reads them: the same bits, on the CPU.

    Args:
        folder: Where the files are.
        keys: What all tensors depend on in addition to their names.
    """

    def memoize(name: str, compute: Callable[[], Params]) -> Params:
        path = folder / f"{fingerprint([FORMAT, *keys, name])[:32]}.safetensors"
        tensors = _read(path)
        if tensors is None:
            tensors = {key: value.detach().cpu().contiguous() for key, value in compute().items()}
            if sum(value.nbytes for value in tensors.values()) <= MAX_FILE_SIZE:
                with suppress(OSError, SafetensorError):  # a folder that cannot be written is slower, no more
                    _write(path, tensors)
        return tensors

    return memoize


def tensor_digest(tensors: Params) -> str:
    """Return the SHA-256 over names, types, shapes, layouts and bits."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} {value.stride()}\n".encode())
        bits: Any = value.cpu().contiguous().flatten().view(torch.uint8).numpy()
        digest.update(bits)
    return digest.hexdigest()


def _read(path: Path) -> Params | None:
    try:
        with safe_open(path, "pt") as file:
            # copied: a file's tensors lie at any address, and a product's bits may depend on how they are aligned
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - no dictionary
            if file.metadata()[DIGEST] != tensor_digest(tensors):
                return None
        os.utime(path)
    except (OSError, SafetensorError, KeyError, TypeError):
        return None
    return tensors


def _write(path: Path, tensors: Params) -> None:
    with atomic(path) as temporary:
        save_file(tensors, temporary, {DIGEST: tensor_digest(tensors)})
    _trim(path.parent, path)


def _trim(folder: Path, newest: Path) -> None:
    """Remove the least recently used files until the rest fits; other processes may do so too."""
    files: list[tuple[float, int, Path]] = []
    for path in folder.iterdir():
        with suppress(OSError):
            info = path.stat()
            if path.name.startswith("."):
                if info.st_mtime < time.time() - STALE_SECONDS:
                    path.unlink()
            elif path != newest:
                files.append((info.st_mtime, info.st_size, path))
    total = newest.stat().st_size
    for _, size, path in sorted(files, reverse=True):
        total += size
        if total > MAX_SIZE:
            path.unlink(missing_ok=True)
