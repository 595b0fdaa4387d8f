"""Which files this process opens, told by Python itself."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

OpenedFiles = Callable[[Path], AbstractContextManager[list[str]]]

_watched: list[tuple[str, list[str]]] = []
_hooked: list[bool] = []


def _hear(event: str, arguments: tuple[object, ...]) -> None:
    if _watched and event == "open" and isinstance(arguments[0], str | os.PathLike):
        path = os.path.abspath(os.fspath(arguments[0]))
        for root, result in _watched:
            if path.startswith(root):
                result.append(path)


@contextmanager
def opened_below(root: Path) -> Iterator[list[str]]:
    """The files below a folder that are opened in the block; a list of folders is none."""
    if not _hooked:  # a hook cannot be taken away again
        sys.addaudithook(_hear)
        _hooked.append(True)
    mine: tuple[str, list[str]] = (f"{os.path.abspath(root)}{os.sep}", [])
    _watched.append(mine)
    try:
        yield mine[1]
    finally:
        _watched.remove(mine)
