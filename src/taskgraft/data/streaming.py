"""Images and frames of videos one after another, in order, decoded ahead of whoever reads them."""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from taskgraft.data import decode, tar_shards, video
from taskgraft.data.layouts import TEXT_SUFFIXES, list_folder
from taskgraft.data.transforms import Preprocessing
from taskgraft.errors import DataError
from taskgraft.results.files import shown

AHEAD = 4  # images that are being decoded or wait, for each thread


class MediaFile(NamedTuple):
    """A file that is to be read; `name` is what its rows are called."""

    path: Path
    name: str
    is_video: bool


class StreamedImage(NamedTuple):
    """One image [H, W, 3] uint8, or the reason why there is none; `seconds` is None but for a video's frames."""

    name: str
    pixels: NDArray[np.uint8] | None
    reason: str | None
    seconds: float | None = None


class Found(NamedTuple):
    """What the given paths hold, and what was left out: (path, reason)."""

    items: tuple[MediaFile, ...]
    skipped: tuple[tuple[str, str], ...]


def find_media(paths: Iterable[str | Path]) -> Found:
    """Files in the order given, folders sorted and with all below them; a path that is given twice counts once.

    The images of a tar archive stand for it, labeled or not. Raises TaskgraftError for a path that does not exist,
    and for
    a damaged archive. What lies in a folder and is text, hidden, or a link that leads out
    of it is left out.
    """
    items: dict[str, MediaFile] = {}
    skipped: list[tuple[str, str]] = []
    for given in paths:
        path = Path(given)
        try:
            folder = path.is_dir()
            missing = not folder and not os.path.lexists(path)
        except (OSError, ValueError) as error:
            raise DataError(f"{shown(str(given))!r} is no path: {error}; give a name that a file can have") from error
        if missing:
            raise DataError(f"{shown(str(given))} does not exist; give images, videos or folders of them")
        for file in _unpacked(_below(path, skipped) if folder else (path,), skipped):
            items.setdefault(str(file), MediaFile(file, shown(str(file)), file.suffix.lower() in video.SUFFIXES))
    return Found(tuple(items.values()), tuple(skipped))


def _unpacked(files: Iterable[Path], skipped: list[tuple[str, str]]) -> Iterator[Path]:
    for file in files:
        if file.suffix.lower() != tar_shards.SUFFIX or not file.is_file():
            yield file
            continue
        skipped += [(shown(f"{file}/{name}"), reason) for name, reason in tar_shards.read_index(file).skipped]
        yield from (file / name for name in tar_shards.list_members(file))


def stream_images(items: Sequence[MediaFile], preprocessing: Preprocessing, every: float) -> Iterator[StreamedImage]:
    """Every image of `items`, and of videos a frame every `every` seconds, named "file@12.500s"."""
    threads = max(1, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of what the rules already decide
        waiting: deque[tuple[MediaFile, Future[decode.Decoded] | None]] = deque()
        rest = iter(items)
        try:
            while True:
                while len(waiting) < AHEAD * threads and (item := next(rest, None)) is not None:
                    waiting.append(
                        (item, None if item.is_video else pool.submit(decode.decode_file, item.path, preprocessing))
                    )
                if not waiting:
                    return
                item, future = waiting.popleft()
                if future is None:
                    yield from _frames(item, preprocessing, every)
                else:
                    found = future.result()
                    yield StreamedImage(item.name, found.pixels, found.reason)
        finally:
            for _, future in waiting:
                if future is not None:
                    future.cancel()


def _frames(item: MediaFile, preprocessing: Preprocessing, every: float) -> Iterator[StreamedImage]:
    for frame in video.frames(item.path, preprocessing, every):
        if frame.pixels is None:
            yield StreamedImage(item.name, None, frame.reason)
        else:
            yield StreamedImage(f"{item.name}@{frame.seconds:.3f}s", frame.pixels, None, frame.seconds)


def _below(root: Path, skipped: list[tuple[str, str]]) -> Iterator[Path]:
    """All files below a folder, sorted; folders that are links are not entered, so no circle of them is walked."""
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        own: list[tuple[str, str]] = []
        below = []
        for item in list_folder(folder, root, own):
            if item.is_dir():
                if item.is_symlink():
                    own.append((item.relative_to(root).as_posix(), "a link to a folder"))
                else:
                    below.append(item)
            elif item.suffix.lower() not in TEXT_SUFFIXES:
                yield item
        skipped += [(shown(str(root / where)), reason) for where, reason in own]
        waiting += reversed(below)
