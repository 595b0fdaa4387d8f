"""Columns of a table in one file that is mapped, not read: a million rows take no memory until they are looked at.

The file is safetensors with a line of JSON. Parquet and NPZ have to be unpacked into memory first, and Parquet needs a
library of 170 MB.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from taskgraft.results.files import atomic

CHUNK = 4096  # names that are decoded at once when all are wanted


@dataclass(frozen=True)
class Names:
    """Strings by row: `text` [bytes] uint8, one after another, and where each ends, `ends` [N] int64."""

    text: Tensor
    ends: Tensor

    def __len__(self) -> int:
        """How many there are."""
        return len(self.ends)

    def __getitem__(self, row: int, /) -> str:
        """One of them."""
        if not 0 <= row < len(self.ends):
            raise IndexError(row)
        start = int(self.ends[row - 1]) if row else 0
        return _text(self.text[start : int(self.ends[row])])

    def __iter__(self) -> Iterator[str]:
        """All of them, in order."""
        start = 0
        for first in range(0, len(self.ends), CHUNK):
            ends = self.ends[first : first + CHUNK].tolist()
            whole, base = self.text[start : ends[-1]].numpy().tobytes(), start
            for end in ends:
                yield whole[start - base : end - base].decode("utf-8", "surrogateescape")
                start = end


def pack(names: Iterable[str]) -> Names:
    """Strings as columns."""
    parts = [name.encode("utf-8", "surrogateescape") for name in names]
    ends = np.cumsum(np.fromiter(map(len, parts), np.int64, len(parts)))
    text = np.frombuffer(b"".join(parts), np.uint8).copy()
    return Names(torch.from_numpy(text), torch.from_numpy(ends))


def save(path: Path, columns: Mapping[str, Tensor], about: Any) -> None:
    """Write columns and whatever else there is to say of them, as JSON, atomically."""
    with atomic(path) as aside:
        save_file({name: value.contiguous() for name, value in columns.items()}, aside, {"about": json.dumps(about)})


def load(path: Path) -> tuple[dict[str, Tensor], Any] | None:
    """The columns, mapped from the file, and what was said of them; None where there is no whole file."""
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["about"])
            return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError, KeyError, ValueError):
        return None


def _text(found: Tensor) -> str:
    return found.numpy().tobytes().decode("utf-8", "surrogateescape")
