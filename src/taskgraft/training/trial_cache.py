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

SECONDS = "seconds"  # in a file's header: how long computing it took


def build_trial_cache(folder: Path, key: str, on_hit: Callable[[str, float], None]) -> Memoize:
    """Build a function that computes tensors the first time and maps the file afterwards.

    Args:
        folder: Where the files are; it is created.
        key: What the tensors depend on besides their name: parent, images, seed, views.
        on_hit: Called with the name and the seconds saved whenever a file is used.

    Returns:
        A function of a name and a function that computes the tensors. Of two processes that call it at the same time,
        one waits for the other.
    """

    def memoize(name: str, make: Callable[[], Params]) -> Params:
        file = folder / f"{fingerprint([key, name])[:32]}.safetensors"
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock"):
            for leftover in folder.glob(f".{file.name}.*"):  # of a killed process; under the lock none is alive
                leftover.unlink(missing_ok=True)
            cached = _read(file)
            if cached:
                on_hit(name, cached[1])
                return cached[0]
            start = time.perf_counter()
            tensors = make()
            header = {"name": name, SECONDS: f"{time.perf_counter() - start:.3f}"}
            with atomic(file) as aside:
                save_file({part: value.detach().cpu().contiguous() for part, value in tensors.items()}, aside, header)
        return tensors

    return memoize


def _read(file: Path) -> tuple[Params, float] | None:
    """The tensors of a file and the seconds that they took; None where it is missing or damaged."""
    try:
        with safe_open(file, "pt") as opened:
            seconds = float(opened.metadata()[SECONDS])
            return {name: opened.get_tensor(name) for name in opened.keys()}, seconds  # noqa: SIM118 - no dictionary
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None
