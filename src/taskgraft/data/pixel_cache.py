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
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from taskgraft.data import decode, file_index
from taskgraft.data.file_index import FileStates
from taskgraft.data.transforms import Preprocessing
from taskgraft.errors import SetupError
from taskgraft.results.files import atomic, fingerprint, flush, write_json

Progress = Callable[[int, int], None]
Bytes = NDArray[np.uint8]
Arrange = Callable[[Bytes, Mapping[int, str]], Sequence[int]]
Read = Callable[[str], bytes | Image.Image | str]  # name -> an encoded file, an image, or why there is neither
GROUP = 8  # images that a thread takes at a time, since handing one over costs time
BLOCK = 1024  # images that the pool is given at a time, since it accepts all of them at once
SHARD = 64 * 2**20  # bytes of pixels after which finished work is safe: seconds of decoding
DIGEST = 32  # bytes of a SHA-256
NORESERVE = 0x4000  # Linux's MAP_NORESERVE, which Python names from 3.13 on


class LoadedPixels(NamedTuple):
    """The images of N files at training size.

    Attributes:
        pixels: [M, size, size, C] uint8: the M readable files, in order.
        digests: [N, 32] SHA-256 of the contents, zeros where a file could not be opened.
        reasons: why the other files cannot be used, by row.
        decoded: how many images this call decoded.
        key: name of the file in the cache; None in memory.
        peak: the largest value of all images of 16 bits; 0 where there are none.
    """

    pixels: Tensor
    digests: Bytes
    reasons: Mapping[int, str]
    decoded: int
    key: str | None
    peak: int


def load_pixels(
    root: Path,
    paths: Sequence[str],
    preprocessing: Preprocessing,
    *,
    cache: Path | None = None,
    name: str = "unnamed",
    arrange: Arrange | None = None,
    progress: Progress | None = None,
    read: Read | None = None,
) -> LoadedPixels:
    """Decode image files to uint8 pixels, in memory or in the cache, or map them from the cache.

    Args:
        root: folder that `paths` are relative to.
        paths: N files.
        preprocessing: size, crop and interpolation.
        cache: cache folder; None = in memory.
        name: name of the unfinished file in the cache, from `lock_data`.
        arrange: returns the order of the readable rows for (digests, reasons); by default that of `paths`.
        progress: called with (images done, images in total).
        read: reads the image of a name among `paths` that is no file, without a cache.

    Raises:
        SetupError: the cache cannot be written.
    """
    if cache is None:
        return _load_into_memory(root, paths, preprocessing, arrange, progress, read)
    states = file_index.look_up(cache, root, paths)
    folder = geometry_folder(cache, preprocessing)
    if states.unchanged.all():
        rows = _arrange(arrange, states.digests, states.reasons)
        key = _key_of(states.digests[rows])
        pixels = map_pixels(folder, key, len(rows), preprocessing)
        if pixels is not None:
            return LoadedPixels(pixels, states.digests, states.reasons, 0, key, int(states.peaks.max(initial=0)))
    with _writing(cache):
        folder.mkdir(parents=True, exist_ok=True)
        file = _UnfinishedFile(folder / f"{name}.begun", states.signature(), _count_bytes(preprocessing))
        reader = _Reader(root, paths, preprocessing, progress, states, _ContentIndex(folder, preprocessing))
        _resume_reading(file, reader)
        if not states.unchanged.all():
            file_index.store(cache, root, states, reader.lasting_digests(), reader.peaks, reader.reasons)
        rows = _arrange(arrange, reader.digests, reader.reasons)
        key = file.finish(reader.digests[rows], _positions(rows, reader.reasons, len(paths)))
        if file.superseded not in (None, key):
            _remove(folder, file.superseded)
        pixels = map_pixels(folder, key, len(rows), preprocessing)
        if pixels is None:
            raise OSError(f"{key} was removed before it was used")
    return LoadedPixels(pixels, reader.digests, reader.reasons, int(reader.decoded.sum()), key, reader.peak())


@contextlib.contextmanager
def lock_data(cache: Path, data: Path) -> Iterator[str]:
    """Let one process at a time fill the cache from a data path; yields the path's name in the cache."""
    name = fingerprint([os.path.realpath(data)])[:16]
    lock = FileLock(cache / "locks" / name)
    with _writing(cache):
        Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        yield name
    finally:
        lock.release()


def geometry_folder(cache: Path, preprocessing: Preprocessing) -> Path:
    """Folder of the files of one geometry and version of the decoding rules; pixels are cached before normalization."""
    bits = None if preprocessing.bits == 16 else preprocessing.bits  # the same pixels
    channels = preprocessing.channels
    geometry = preprocessing._replace(mean=(0.0,) * channels, std=(1.0,) * channels, bits=bits).to_text()
    return cache / "pixels" / fingerprint([decode.VERSION, geometry])[:16]


def map_pixels(folder: Path, key: str, count: int, preprocessing: Preprocessing) -> Tensor | None:
    """Map a complete file: [count, size, size, C] uint8, copied on write; None if there is none of this length."""
    shape = _shape_of(count, preprocessing)
    if not count:
        return torch.empty(shape, dtype=torch.uint8)
    file = folder / f"{key}.u8"
    try:
        if file.stat().st_size != count * _count_bytes(preprocessing) or not file.with_suffix(".npy").exists():
            return None
        return torch.from_numpy(_map_bytes(file).reshape(shape))
    except OSError:
        return None


def _shape_of(count: int, preprocessing: Preprocessing) -> tuple[int, int, int, int]:
    return count, preprocessing.size, preprocessing.size, preprocessing.channels


def _count_bytes(preprocessing: Preprocessing) -> int:
    """The bytes of an image's pixels."""
    return preprocessing.size**2 * preprocessing.channels


def _map_bytes(path: Path) -> Bytes:
    if sys.platform != "linux":
        return np.memmap(path, np.uint8, "c")
    with path.open("rb") as file:  # Linux would refuse a writable mapping of more than its memory without NORESERVE
        flags, access = mmap.MAP_PRIVATE | NORESERVE, mmap.PROT_READ | mmap.PROT_WRITE  # torch wants writable memory
        return np.frombuffer(mmap.mmap(file.fileno(), 0, flags, access), np.uint8)


class _ContentIndex:
    """All images in the complete files of one geometry, by the digest of their contents."""

    def __init__(self, folder: Path, preprocessing: Preprocessing) -> None:
        self.files: list[Bytes] = []
        digests, locations = [], []
        for path in sorted(folder.glob("*.npy")):
            try:
                stored = np.load(path)
            except (OSError, ValueError, EOFError):
                continue
            pixels = map_pixels(folder, path.stem, len(stored), preprocessing)
            if pixels is not None and len(stored):
                digests.append(stored)
                locations.append(np.stack([np.full(len(stored), len(self.files)), np.arange(len(stored))], axis=1))
                self.files.append(pixels.numpy())
        # as strings of bytes NumPy can sort them; zeros at an end count for nothing there
        table = np.concatenate([*digests, np.empty((0, DIGEST), np.uint8)]).view(f"S{DIGEST}")[:, 0]
        order = np.argsort(table, kind="stable")
        self.digests, self.locations = table[order], np.concatenate([*locations, np.empty((0, 2), int)])[order]

    def find(self, digest: bytes) -> Bytes | None:
        key = np.frombuffer(digest, f"S{DIGEST}")
        index = int(np.searchsorted(self.digests, key)[0])
        if index == len(self.digests) or self.digests[index] != key[0]:
            return None
        file, row = self.locations[index]
        return self.files[file][row]


class _Reader:
    """Reads N files with several threads: their pixels from the cache or decoded, their digests, what is wrong."""

    def __init__(
        self,
        root: Path,
        paths: Sequence[str],
        preprocessing: Preprocessing,
        progress: Progress | None,
        states: FileStates | None = None,
        cached: _ContentIndex | None = None,
        read: Read | None = None,
    ) -> None:
        self.root, self.paths, self.preprocessing, self.progress = root, paths, preprocessing, progress
        self.states, self.cached = states, cached
        self.read_content = read or (lambda path: decode.read_bytes(root / path))
        self.digests = np.zeros((len(paths), DIGEST), np.uint8)
        self.decoded = np.zeros(len(paths), bool)
        self.peaks = np.zeros(len(paths), np.int64)
        self.reasons: dict[int, str] = {}

    def peak(self) -> int:
        """The largest value of all images of 16 bits."""
        return int(self.peaks.max(initial=0))

    def lasting_digests(self) -> Bytes:
        """The digests, zeros where a file is refused for this preprocessing's sake: another one may read it."""
        refused = [row for row, reason in self.reasons.items() if decode.BEYOND in reason]
        digests = self.digests.copy()
        digests[refused] = 0
        return digests

    def read(self, pool: Executor, rows: range, pixels: Bytes) -> int:
        """Read `rows` into the first rows of `pixels`; returns how many are readable."""
        groups = [rows[start : start + GROUP] for start in range(0, len(rows), GROUP)]
        filled = 0
        for group, images in zip(groups, pool.map(self._load_group, groups), strict=True):
            for row, image in zip(group, images, strict=True):
                if image is not None:
                    pixels[filled] = image
                    filled += 1
                if self.progress:
                    self.progress(row + 1, len(self.paths))
        return filled

    def _load_group(self, rows: range) -> list[Bytes | None]:
        return [self._load(row) for row in rows]

    def _load(self, row: int) -> Bytes | None:
        if self.states and self.states.unchanged[row]:
            self.digests[row], self.peaks[row] = self.states.digests[row], self.states.peaks[row]
            if row in self.states.reasons:
                self.reasons[row] = self.states.reasons[row]
                return None
            pixels = self._find_cached(row)
            if pixels is not None:
                return pixels
        content = self.read_content(self.paths[row])
        if isinstance(content, str):
            self.decoded[row], self.reasons[row] = True, content
            return None
        if isinstance(content, Image.Image):
            self.digests[row] = np.frombuffer(_digest_image(content), np.uint8)
            return self._keep(row, decode.decode_image(content, self.preprocessing))
        self.digests[row] = np.frombuffer(hashlib.sha256(content).digest(), np.uint8)
        pixels = self._find_cached(row)
        if pixels is not None:
            self.peaks[row] = decode.read_peak(content)
            return pixels
        return self._keep(row, decode.decode_bytes(content, self.preprocessing))

    def _keep(self, row: int, image: decode.Decoded) -> Bytes | None:
        pixels, reason, _, _, self.peaks[row] = image
        self.decoded[row] = True
        if reason:
            self.reasons[row] = reason
        return pixels

    def _find_cached(self, row: int) -> Bytes | None:
        return self.cached.find(self.digests[row].tobytes()) if self.cached else None


class _UnfinishedFile:
    """A file of pixels that is being written in a folder of its own, with how far it is.

    `begun.json` holds how many entries are `done` and how many rows are `readable`, and is replaced after each shard.
    What an interrupted process wrote beyond that is cut off.
    """

    def __init__(self, folder: Path, signature: str, row_bytes: int) -> None:
        self.folder, self.signature, self.row_bytes = folder, signature, row_bytes
        self.done = self.readable = 0
        self.reasons: dict[int, str] = {}
        self.digests = np.empty((0, DIGEST), np.uint8)
        self.peaks: dict[int, int] = {}
        self.superseded: str | None = None  # key of what an earlier attempt on other file states left
        if not self._resume():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()

    def _resume(self) -> bool:
        pixels, digests = self.folder / "pixels", self.folder / "digests"
        try:
            state = json.loads((self.folder / "begun.json").read_text())
            done, readable = int(state["done"]), int(state["readable"])
            reasons = {int(row): str(reason) for row, reason in state["reasons"].items()}
            peaks = {int(row): int(peak) for row, peak in state["peaks"].items()}
            if pixels.stat().st_size < readable * self.row_bytes or digests.stat().st_size < done * DIGEST:
                return False
            os.truncate(pixels, readable * self.row_bytes)
            os.truncate(digests, done * DIGEST)
            stored = np.fromfile(digests, np.uint8).reshape(-1, DIGEST)
            if state["signature"] != self.signature:  # files have changed since; what has not is copied from there
                rows = [row for row in range(done) if row not in reasons]
                self.superseded = self.finish(stored[rows], np.arange(readable))
                return False
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False
        self.done, self.readable, self.reasons, self.digests, self.peaks = done, readable, reasons, stored, peaks
        return True

    def append(self, pixels: Bytes, digests: Bytes, reasons: Mapping[int, str], peaks: Mapping[int, int]) -> None:
        for name, rows in (("pixels", pixels), ("digests", digests)):
            with (self.folder / name).open("ab") as file:
                file.write(np.ascontiguousarray(rows).data)
                file.flush()
                os.fsync(file.fileno())
        self.done, self.readable = self.done + len(digests), self.readable + len(pixels)
        state = {"signature": self.signature, "done": self.done, "readable": self.readable}
        state |= {"reasons": reasons, "peaks": peaks}
        write_json(self.folder / "begun.json", state)

    def finish(self, digests: Bytes, order: NDArray[np.int64]) -> str:
        """Bring the rows into order and name the file by its contents; the digests come last: it is complete."""
        key, pixels = _key_of(digests), self.folder / "pixels"
        pixels.touch()
        if (order != np.arange(len(order))).any():
            rows = _map_bytes(pixels).reshape(-1, self.row_bytes)
            pixels = self.folder / "ordered"
            with pixels.open("wb") as file:
                for index in np.array_split(order, len(order) * self.row_bytes // SHARD + 1):
                    file.write(rows[index].data)
            flush(pixels)
        os.replace(pixels, self.folder.with_name(f"{key}.u8"))
        with atomic(self.folder.with_name(f"{key}.npy")) as temporary, temporary.open("wb") as file:
            np.save(file, digests)
        shutil.rmtree(self.folder, ignore_errors=True)
        return key


def _resume_reading(file: _UnfinishedFile, reader: _Reader) -> None:
    """Read what the file lacks, shard by shard."""
    count = len(reader.paths)
    reader.digests[: file.done] = file.digests
    reader.reasons.update(file.reasons)
    reader.peaks[list(file.peaks)] = list(file.peaks.values())
    shard = max(1, SHARD // file.row_bytes)
    with decode.thread_pool() as pool:
        for start in range(file.done, count, shard):
            rows = range(start, min(start + shard, count))
            pixels = np.empty(_shape_of(len(rows), reader.preprocessing), np.uint8)
            filled = reader.read(pool, rows, pixels)
            peaks = {row: int(reader.peaks[row]) for row in np.flatnonzero(reader.peaks).tolist()}
            file.append(pixels[:filled], reader.digests[rows.start : rows.stop], reader.reasons, peaks)


def _load_into_memory(
    root: Path,
    paths: Sequence[str],
    preprocessing: Preprocessing,
    arrange: Arrange | None,
    progress: Progress | None,
    read: Read | None,
) -> LoadedPixels:
    reader, filled = _Reader(root, paths, preprocessing, progress, read=read), 0
    pixels = np.empty(_shape_of(len(paths), preprocessing), np.uint8)
    with decode.thread_pool() as pool:
        for start in range(0, len(paths), BLOCK):
            filled += reader.read(pool, range(start, min(start + BLOCK, len(paths))), pixels[filled:])
    rows = _arrange(arrange, reader.digests, reader.reasons)
    order = _positions(rows, reader.reasons, len(paths))
    ordered = pixels[order] if (order != np.arange(filled)).any() else pixels[:filled]
    pixels, decoded = torch.from_numpy(ordered), int(reader.decoded.sum())
    return LoadedPixels(pixels, reader.digests, reader.reasons, decoded, None, reader.peak())


def _digest_image(image: Image.Image) -> bytes:
    """SHA-256 of the pixels of an image in memory, and of their form."""
    return hashlib.sha256(f"{image.mode} {image.size}\n".encode() + image.tobytes()).digest()


def _arrange(arrange: Arrange | None, digests: Bytes, reasons: Mapping[int, str]) -> Sequence[int]:
    if arrange:
        return arrange(digests, reasons)
    return [row for row in range(len(digests)) if row not in reasons]


def _positions(rows: Sequence[int], reasons: Mapping[int, str], count: int) -> NDArray[np.int64]:
    """Where the pixels of `rows` are among those of all readable files."""
    readable = np.ones(count, bool)
    readable[list(reasons)] = False
    return (np.cumsum(readable) - 1)[np.asarray(rows, np.int64)]


def _key_of(digests: Bytes) -> str:
    return fingerprint([digests.tobytes().hex()])[:32]


def _remove(folder: Path, key: str | None) -> None:
    for suffix in (".npy", ".u8"):
        (folder / f"{key}{suffix}").unlink(missing_ok=True)


@contextlib.contextmanager
def _writing(cache: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SetupError(
            f"the cache {cache} cannot be written: {error.strerror or error}; free some space, "
            "choose another --cache FOLDER, or use --cache none"
        ) from error
