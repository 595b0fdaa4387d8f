"""What the trials of a search compute once: tensors in files, by name, for all processes that share the folder."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from taskgraft.results.files import atomic, fingerprint
from taskgraft.types import Memoize, Params

SECONDS = "seconds"  # in a file's header: what making it took


def once_in(folder: Path, key: str, saved: Callable[[str, float], None]) -> Memoize:
    """A function that makes tensors the first time and maps the file afterwards; `saved(name, seconds)` hears of it.

    `key` tells apart whatever the tensors depend on beside their name: parent, images, seed, views. Two processes
    that ask at the same time wait for one.
    """

    def once(name: str, make: Callable[[], Params]) -> Params:
        file = folder / f"{fingerprint([key, name])[:32]}.safetensors"
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock"):
            for left in folder.glob(f".{file.name}.*"):  # of a process that was killed; the lock says that none lives
                left.unlink(missing_ok=True)
            known = _read(file)
            if known:
                saved(name, known[1])
                return known[0]
            begun = time.perf_counter()
            tensors = make()
            seconds = time.perf_counter() - begun
            with atomic(file) as aside:
                header = {"name": name, SECONDS: f"{seconds:.3f}"}
                save_file({part: value.detach().cpu().contiguous() for part, value in tensors.items()}, aside, header)
        return tensors

    return once


def _read(file: Path) -> tuple[Params, float] | None:
    try:
        with safe_open(file, "pt") as opened:
            seconds = float(opened.metadata()[SECONDS])
            return {name: opened.get_tensor(name) for name in opened.keys()}, seconds  # noqa: SIM118 - no dictionary
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None
