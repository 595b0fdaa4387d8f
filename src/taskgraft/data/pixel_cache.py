"""Decoded pixels in memory-mapped files, looked up by image content: nothing is ever decoded twice.

A file `<key>.u8` holds the images of one set, row after row without a header, so that any range of rows is a tensor
that takes no memory until it is read; `<key>.npy` holds their SHA-256 digests and is written last. Files grow shard by
shard: an interrupted run resumes after the last complete shard. Images that are in another file are copied from there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor

from taskgraft.data import decode
from taskgraft.data.file_index import FileStates
from taskgraft.data.transforms import Preprocessing
from taskgraft.errors import SetupError
from taskgraft.results.files import atomic, fingerprint, write_json

Progress = Callable[[int, int], None]
Pixels = NDArray[np.uint8]
GROUP = 8  # images that a thread takes at a time
BLOCK = 1024  # images that the pool is given at a time, since it accepts all of them at once
SHARD = 64 * 2**20  # bytes of pixels after which finished work is safe: seconds of decoding
DIGEST = 32  # bytes of a SHA-256
NORESERVE = 0x4000  # Linux's MAP_NORESERVE, which Python names from 3.13 on


class LoadedPixels(NamedTuple):
    """The images of N files at training size.

    Attributes:
        pixels: [M, size, size, 3] uint8: the M readable files, in order.
        digests: [N, 32] SHA-256 of the contents, zeros where a file could not be opened.
        reasons: why the other files cannot be used, by row.
        decoded: how many images this call decoded.
        key: name of the file in the cache; None in memory.
    """

    pixels: Tensor
    digests: Pixels
    reasons: Mapping[int, str]
    decoded: int
    key: str | None


class CacheTarget(NamedTuple):
    """A cache folder, the name of this caller's unfinished file there, and what is known about the images' files."""

    folder: Path
    name: str
    states: FileStates


class _Image(NamedTuple):
    digest: bytes  # empty where the file could not be opened
    pixels: Pixels | None
    reason: str | None
    decoded: bool


def load_pixels(
    root: Path,
    paths: Sequence[str],
    preprocessing: Preprocessing,
    target: CacheTarget | None = None,
    progress: Progress | None = None,
) -> LoadedPixels:
    """Decode image files to uint8 pixels, in memory or in the cache, or map them from the cache.

    Args:
        root: folder that `paths` are relative to.
        paths: N files.
        preprocessing: size, crop and interpolation.
        target: where to cache; None = in memory.
        progress: called with (images done, images in total).

    Raises:
        SetupError: the cache cannot be written.
    """
    if target is None:
        return _load_into_memory(root, paths, preprocessing, progress)
    home, states = geometry_folder(target.folder, preprocessing), target.states
    if states.unchanged.all():
        good = [row for row in range(len(paths)) if row not in states.reasons]
        key = _key_of(states.digests[good])
        pixels = map_pixels(home, key, len(good), preprocessing.size)
        if pixels is not None:
            return LoadedPixels(pixels, states.digests, states.reasons, 0, key)
    with _reported(target.folder):
        home.mkdir(parents=True, exist_ok=True)
        return _build_file(home / f"{target.name}.begun", root, paths, preprocessing, states, progress)


@contextlib.contextmanager
def lock_data(folder: Path, data: Path) -> Iterator[str]:
    """Let one process at a time fill the cache from a data path; yields the path's name in the cache."""
    name = fingerprint([os.path.realpath(data)])[:16]
    lock = FileLock(folder / "locks" / name)
    with _reported(folder):
        Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        yield name
    finally:
        lock.release()


def geometry_folder(folder: Path, preprocessing: Preprocessing) -> Path:
    """Folder of the files of one geometry and version of the decoding rules; pixels are cached before normalization."""
    geometry = preprocessing._replace(mean=(0.0,) * 3, std=(1.0,) * 3).to_text()
    return folder / "pixels" / fingerprint([decode.VERSION, geometry])[:16]


def discard(folder: Path, preprocessing: Preprocessing, key: str) -> None:
    """Remove a file from the cache; processes that have it mapped keep it."""
    _remove(geometry_folder(folder, preprocessing), key)


def map_pixels(home: Path, key: str, count: int, size: int) -> Tensor | None:
    """Map a complete file: [count, size, size, 3] uint8, copied on write; None if there is none of this length."""
    if not count:
        return torch.empty((0, size, size, 3), dtype=torch.uint8)
    file = home / f"{key}.u8"
    try:
        if file.stat().st_size != count * size * size * 3 or not file.with_suffix(".npy").exists():
            return None
        return torch.from_numpy(_map_bytes(file).reshape(count, size, size, 3))
    except OSError:
        return None


def _map_bytes(file: Path) -> Pixels:
    if sys.platform != "linux":
        return np.memmap(file, np.uint8, "c")
    with file.open("rb") as opened:  # Linux would refuse a writable mapping of more than its memory without NORESERVE
        flags, access = mmap.MAP_PRIVATE | NORESERVE, mmap.PROT_READ | mmap.PROT_WRITE  # torch wants writable memory
        return np.frombuffer(mmap.mmap(opened.fileno(), 0, flags, access), np.uint8)


class _ContentIndex:
    """All images in the complete files of one geometry, by the digest of their contents."""

    def __init__(self, home: Path, size: int) -> None:
        self.files: list[Pixels] = []
        digests, rows = [], []
        for file in sorted(home.glob("*.npy")):
            try:
                found = np.load(file)
            except (OSError, ValueError, EOFError):
                continue
            pixels = map_pixels(home, file.stem, len(found), size)
            if pixels is not None and len(found):
                digests.append(found)
                rows.append(np.stack([np.full(len(found), len(self.files)), np.arange(len(found))], axis=1))
                self.files.append(pixels.numpy())
        # as strings of bytes NumPy can sort them; zeros at an end count for nothing there
        table = np.concatenate([*digests, np.empty((0, DIGEST), np.uint8)]).view(f"S{DIGEST}")[:, 0]
        order = np.argsort(table, kind="stable")
        self.digests, self.rows = table[order], np.concatenate([*rows, np.empty((0, 2), int)])[order]

    def find(self, digest: bytes) -> Pixels | None:
        wanted = np.frombuffer(digest, f"S{DIGEST}")
        at = int(np.searchsorted(self.digests, wanted)[0])
        if at == len(self.digests) or self.digests[at] != wanted[0]:
            return None
        file, row = self.rows[at]
        return self.files[file][row]


class _UnfinishedFile:
    """A file of pixels that is being written in a folder of its own, with how far it is.

    `begun.json` tells how many entries are `done` and how many rows are `good`, and is replaced after each shard.
    What an interrupted process wrote beyond that is cut off.
    """

    def __init__(self, folder: Path, signature: str, row_bytes: int) -> None:
        self.folder, self.signature = folder, signature
        self.done = self.good = 0
        self.reasons: dict[int, str] = {}
        self.digests = np.empty((0, DIGEST), np.uint8)
        self.superseded: str | None = None  # key of what an earlier attempt on other file states left
        if not self._resume(row_bytes):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()

    def _resume(self, row_bytes: int) -> bool:
        pixels, digests = self.folder / "pixels", self.folder / "digests"
        try:
            state = json.loads((self.folder / "begun.json").read_text())
            done, good = int(state["done"]), int(state["good"])
            reasons = {int(row): str(reason) for row, reason in state["reasons"].items()}
            if pixels.stat().st_size < good * row_bytes or digests.stat().st_size < done * DIGEST:
                return False
            os.truncate(pixels, good * row_bytes)
            os.truncate(digests, done * DIGEST)
            stored = np.fromfile(digests, np.uint8).reshape(-1, DIGEST)
            if state["mark"] != self.signature:  # files have changed since; what has not is copied from there
                self.superseded = self.finish(stored, reasons)
                return False
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False
        self.done, self.good, self.reasons, self.digests = done, good, reasons, stored
        return True

    def append(self, pixels: Pixels, digests: Pixels) -> None:
        for name, rows in (("pixels", pixels), ("digests", digests)):
            with (self.folder / name).open("ab") as file:
                file.write(np.ascontiguousarray(rows).data)
                file.flush()
                os.fsync(file.fileno())
        self.done, self.good = self.done + len(digests), self.good + len(pixels)
        state = {"mark": self.signature, "done": self.done, "good": self.good, "reasons": self.reasons}
        write_json(self.folder / "begun.json", state)

    def finish(self, digests: Pixels, reasons: Mapping[int, str]) -> str:
        """Rename the file by its contents; the digests come last and say that it is complete."""
        good = digests[[row for row in range(len(digests)) if row not in reasons]]
        key = _key_of(good)
        (self.folder / "pixels").touch()
        os.replace(self.folder / "pixels", self.folder.with_name(f"{key}.u8"))
        with atomic(self.folder.with_name(f"{key}.npy")) as temporary, temporary.open("wb") as file:
            np.save(file, good)
        shutil.rmtree(self.folder, ignore_errors=True)
        return key


def _build_file(
    folder: Path,
    root: Path,
    paths: Sequence[str],
    preprocessing: Preprocessing,
    states: FileStates,
    progress: Progress | None,
) -> LoadedPixels:
    """Write the file of these images, resuming where an earlier attempt stopped."""
    home, size, count = folder.parent, preprocessing.size, len(paths)
    file = _UnfinishedFile(folder, states.signature(), size * size * 3)
    cached = _ContentIndex(home, size)
    digests, decoded, shard = np.zeros((count, DIGEST), np.uint8), 0, max(1, SHARD // (size * size * 3))
    digests[: file.done] = file.digests

    def load(row: int) -> _Image:
        if states.unchanged[row]:
            digest, reason = states.digests[row].tobytes(), states.reasons.get(row)
            pixels = None if reason else cached.find(digest)
            if reason or pixels is not None:
                return _Image(digest, pixels, reason, False)
        return _read_image(root / paths[row], preprocessing, cached)

    with _thread_pool() as pool:
        for first in range(file.done, count, shard):
            rows = range(first, min(first + shard, count))
            block, filled = np.empty((len(rows), size, size, 3), np.uint8), 0
            for row, image in _map_rows(pool, load, rows):
                filled = _store(image, row, block, filled, digests[row], file.reasons)
                decoded += image.decoded
                if progress:
                    progress(row + 1, count)
            file.append(block[:filled], digests[rows.start : rows.stop])
    key = file.finish(digests, file.reasons)
    if file.superseded not in (None, key):
        _remove(home, file.superseded)
    pixels = map_pixels(home, key, file.good, size)
    if pixels is None:
        raise OSError(f"{key} was removed before it was used")
    return LoadedPixels(pixels, digests, file.reasons, decoded, key)


def _load_into_memory(
    root: Path, paths: Sequence[str], preprocessing: Preprocessing, progress: Progress | None
) -> LoadedPixels:
    count, reasons, filled = len(paths), {}, 0
    pixels = np.empty((count, preprocessing.size, preprocessing.size, 3), np.uint8)
    digests = np.zeros((count, DIGEST), np.uint8)
    with _thread_pool() as pool:
        for first in range(0, count, BLOCK):
            rows = range(first, min(first + BLOCK, count))
            for row, image in _map_rows(pool, lambda row: _read_image(root / paths[row], preprocessing, None), rows):
                filled = _store(image, row, pixels, filled, digests[row], reasons)
                if progress:
                    progress(row + 1, count)
    return LoadedPixels(torch.from_numpy(pixels[:filled]), digests, reasons, count, None)


def _map_rows(pool: ThreadPoolExecutor, load: Callable[[int], _Image], rows: range) -> Iterator[tuple[int, _Image]]:
    """Each row's image, in order; threads get several rows at a time, since handing one over costs time."""
    groups = [rows[start : start + GROUP] for start in range(0, len(rows), GROUP)]
    for group, images in zip(groups, pool.map(lambda group: [load(row) for row in group], groups), strict=True):
        yield from zip(group, images, strict=True)


def _store(image: _Image, row: int, pixels: Pixels, filled: int, digest: Pixels, reasons: dict[int, str]) -> int:
    """Store an image as the next row of `pixels`, or why it cannot be used; returns the number of rows filled."""
    if image.digest:
        digest[:] = np.frombuffer(image.digest, np.uint8)
    if image.pixels is None:
        reasons[row] = image.reason or "cannot be read"
        return filled
    pixels[filled] = image.pixels
    return filled + 1


def _read_image(file: Path, preprocessing: Preprocessing, cached: _ContentIndex | None) -> _Image:
    """Read a file's bytes, once, and decode them unless the cache has their pixels."""
    content = decode.read_bytes(file)
    if isinstance(content, str):
        return _Image(b"", None, content, True)
    digest = hashlib.sha256(content).digest()
    pixels = cached.find(digest) if cached else None
    if pixels is not None:
        return _Image(digest, pixels, None, False)
    decoded = decode.decode_bytes(content, preprocessing)
    return _Image(digest, decoded.pixels, decoded.reason, True)


def _key_of(digests: Pixels) -> str:
    return fingerprint([digests.tobytes().hex()])[:32]


def _remove(home: Path, key: str | None) -> None:
    for suffix in (".npy", ".u8"):
        with contextlib.suppress(OSError):
            (home / f"{key}{suffix}").unlink()


@contextlib.contextmanager
def _thread_pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(max(1, os.cpu_count() or 1)) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about what the decoding rules already decide
        yield pool


@contextlib.contextmanager
def _reported(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SetupError(
            f"the cache {folder} cannot be written: {error.strerror or error}; free some space, "
            "choose another --cache FOLDER, or use --cache none"
        ) from error
