"""Pixels at training size in one memory-mapped uint8 file, keyed by content: a second run decodes nothing."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from taskgraft.data import decode
from taskgraft.data.preprocess import Preprocess
from taskgraft.record import atomic, fingerprint

Progress = Callable[[int, int], None]


class Pixels(NamedTuple):
    """`pixels` [N, size, size, 3] uint8, a row for each file asked for; `reasons` [N], None where decoded."""

    pixels: Tensor
    digests: tuple[str, ...]
    reasons: tuple[str | None, ...]
    decoded: int  # how many pictures this call decoded


def load(files: Sequence[Path], wanted: Preprocess, folder: Path | None, progress: Progress | None = None) -> Pixels:
    """Decode files to uint8 pixels, or map them from the cache in `folder` (None = keep them in memory).

    The key is made of every file's content, its order, the preprocessing and the version of the decoding rules.
    """
    threads = max(1, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of what the rules already decide
        contents = list(pool.map(decode.content, files))
        digests = tuple(digest for digest, _ in contents)
        geometry = wanted._replace(mean=(0.0,) * 3, std=(1.0,) * 3).show()  # pixels are kept before normalisation
        key = fingerprint([decode.VERSION, geometry, *digests])[:32]
        stored = _open(folder, key) if folder else None
        if stored:
            return Pixels(*stored, decoded=0)._replace(digests=digests)
        shape = (len(files), wanted.size, wanted.size, 3)
        if folder is None:
            pixels = np.empty(shape, np.uint8)
            reasons = _fill(pixels, files, wanted, pool, progress)
        else:
            with atomic(folder / f"{key}.npy") as aside:
                pixels = np.lib.format.open_memmap(aside, mode="w+", dtype=np.uint8, shape=shape)
                reasons = _fill(pixels, files, wanted, pool, progress)
                pixels.flush()
            with atomic(folder / f"{key}.json") as aside:  # last: the pair is whole once this exists
                aside.write_text(json.dumps(reasons))
            pixels = np.load(folder / f"{key}.npy", mmap_mode="c")
    return Pixels(torch.from_numpy(pixels), digests, tuple(reasons), len(files))


def _fill(
    pixels: np.ndarray,
    files: Sequence[Path],
    wanted: Preprocess,
    pool: ThreadPoolExecutor,
    progress: Progress | None,
) -> list[str | None]:
    reasons: list[str | None] = []
    for row, found in enumerate(pool.map(lambda file: decode.decode(file, wanted), files)):
        pixels[row] = 0 if found.pixels is None else found.pixels
        reasons.append(found.reason)
        if progress:
            progress(row + 1, len(files))
    return reasons


def _open(folder: Path, key: str) -> tuple[Tensor, tuple[str, ...], tuple[str | None, ...]] | None:
    try:
        reasons = json.loads((folder / f"{key}.json").read_text())
        pixels = np.load(folder / f"{key}.npy", mmap_mode="c")  # copy-on-write: torch wants it writable
    except (OSError, ValueError, EOFError):
        return None
    if not isinstance(reasons, list) or len(reasons) != len(pixels):
        return None
    return torch.from_numpy(pixels), (), tuple(reasons)
