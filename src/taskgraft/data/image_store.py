"""Whole files of pixels in the cache: mapped, and looked up by the content of an image."""

from __future__ import annotations

import mmap
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NORESERVE = 0x4000  # Linux's MAP_NORESERVE, which Python names from 3.13 on
DIGEST = 32  # bytes of a SHA-256

Shown = Callable[[bytes], NDArray[np.uint8] | None]  # digest -> pixels [size, size, 3]


def open_file(home: Path, key: str, count: int, size: int) -> Tensor | None:
    """The pixels [count, size, size, 3] of a whole file, mapped; None where there is none."""
    if not count:
        return torch.empty((0, size, size, 3), dtype=torch.uint8)
    file = home / f"{key}.u8"
    try:
        if file.stat().st_size != count * size * size * 3 or not file.with_suffix(".npy").exists():
            return None
        return torch.from_numpy(_mapped(file).reshape(count, size, size, 3))
    except OSError:
        return None


def _mapped(file: Path) -> NDArray[np.uint8]:
    """The bytes of a file, copied where somebody writes into them: torch wants memory that can be written."""
    if sys.platform != "linux":
        return np.memmap(file, np.uint8, "c")
    with file.open("rb") as opened:  # Linux would refuse a writable mapping of more than its memory without NORESERVE
        flags, use = mmap.MAP_PRIVATE | NORESERVE, mmap.PROT_READ | mmap.PROT_WRITE
        return np.frombuffer(mmap.mmap(opened.fileno(), 0, flags, use), np.uint8)


def shown_in(home: Path, size: int) -> Shown:
    """`shown(digest)`: the pixels of an image whose content stands in some file of the cache, else None."""
    files, marks, rows = [], [], []
    for file in sorted(home.glob("*.npy")):
        try:
            digests = np.load(file)
        except (OSError, ValueError, EOFError):
            continue
        pixels = open_file(home, file.stem, len(digests), size)
        if pixels is not None and len(digests):
            files.append(pixels.numpy())
            marks.append(digests)
            rows.append(np.stack([np.full(len(digests), len(files) - 1), np.arange(len(digests))], axis=1))
    if not files:
        return nothing
    table, where = _comparable(np.concatenate(marks)), np.concatenate(rows)
    order = np.argsort(table, kind="stable")
    table, where = table[order], where[order]

    def shown(digest: bytes) -> NDArray[np.uint8] | None:
        asked = np.frombuffer(digest, table.dtype)
        at = min(int(np.searchsorted(table, asked)[0]), len(table) - 1)
        number, row = where[at]
        return files[number][row] if table[at] == asked[0] else None

    return shown


def nothing(digest: bytes) -> None:
    """What an empty cache shows."""
    return None


def _comparable(digests: NDArray[np.uint8]) -> NDArray[np.bytes_]:
    """Digests [N, 32] as [N] strings of bytes that NumPy can sort; zeros at an end count for nothing there."""
    return np.ascontiguousarray(digests).view(f"S{DIGEST}")[:, 0]
