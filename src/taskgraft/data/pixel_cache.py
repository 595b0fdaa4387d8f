"""Pixels at training size in memory-mapped files, by content: what was decoded once is never decoded again.

A file holds the images of one set, in its order, row after row, with nothing before or between them; so any run of
rows is a tensor that takes no memory until it is looked at. Files are made shard by shard: whoever is stopped goes on
after the last whole shard. An image that stands in another file of the cache is copied from there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
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

from taskgraft.data import decode, image_store
from taskgraft.data.file_index import Known
from taskgraft.data.image_store import DIGEST, Shown
from taskgraft.data.transforms import Preprocessing
from taskgraft.errors import SetupError
from taskgraft.results.files import atomic, fingerprint, write_json

Progress = Callable[[int, int], None]
GROUP = 8  # images that a thread takes at a time
BLOCK = 1024  # images that a pool is given at a time, since it takes in all at once
SHARD = 64 * 2**20  # bytes of pixels after which finished work is safe: seconds of decoding


class Pixels(NamedTuple):
    """`pixels` [M, size, size, 3] uint8: the M of N files that can be used, in order; `reasons` for the others, by row.

    `digests` [N, 32] are SHA-256 of the contents, zeros where a file could not be opened. `decoded` counts the
    images that this call decoded; `key` is the file's name in the cache, None in memory.
    """

    pixels: Tensor
    digests: NDArray[np.uint8]
    reasons: Mapping[int, str]
    decoded: int
    key: str | None


class Store(NamedTuple):
    """A cache folder, what unfinished work of this caller is called there, and what need not be read again."""

    folder: Path
    name: str
    known: Known


class _Row(NamedTuple):
    digest: bytes
    pixels: NDArray[np.uint8] | None
    reason: str | None
    decoded: bool


class _Begun(NamedTuple):
    """How far a file is: entries done, rows written, digests of all done, reasons by entry."""

    done: int
    good: int
    digests: bytes
    reasons: dict[int, str]


def load_pixels(
    root: Path,
    paths: Sequence[str],
    preprocessing: Preprocessing,
    store: Store | None = None,
    progress: Progress | None = None,
) -> Pixels:
    """Decode the files at `paths` below a root to uint8 pixels: into memory, or into a store, or map them from there.

    Raises TaskgraftError where the store cannot be written.
    """
    if store is None:
        return _in_memory(root, paths, preprocessing, progress)
    home, known = geometry_folder(store.folder, preprocessing), store.known
    if known.sure.all():
        good = [row for row in range(len(paths)) if row not in known.reasons]
        key = _key(known.digests[good])
        pixels = image_store.open_file(home, key, len(good), preprocessing.size)
        if pixels is not None:
            return Pixels(pixels, known.digests, known.reasons, 0, key)
    with _writable(store.folder):
        home.mkdir(parents=True, exist_ok=True)
        return _build(home / f"{store.name}.begun", root, paths, preprocessing, known, progress)


@contextlib.contextmanager
def alone(folder: Path, data: Path) -> Iterator[str]:
    """Let one process at a time fill the cache from a data path: whoever waited finds the work done. Gives its name."""
    name = fingerprint([os.path.realpath(data)])[:16]
    lock = FileLock(folder / "locks" / name)
    with _writable(folder):
        Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        yield name
    finally:
        lock.release()


@contextlib.contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SetupError(
            f"the cache {folder} cannot be written: {error.strerror or error}; make room, "
            "or choose another --cache FOLDER, or --cache none",
        ) from error


def geometry_folder(folder: Path, preprocessing: Preprocessing) -> Path:
    """Where files of one geometry and one version of the decoding rules lie."""
    geometry = preprocessing._replace(mean=(0.0,) * 3, std=(1.0,) * 3).to_text()  # pixels are kept before normalization
    return folder / "pixels" / fingerprint([decode.VERSION, geometry])[:16]


def discard(folder: Path, preprocessing: Preprocessing, key: str) -> None:
    """Remove a file from the cache; whoever has it mapped keeps it."""
    _remove(geometry_folder(folder, preprocessing), key)


def _remove(home: Path, key: str) -> None:
    for suffix in (".npy", ".u8"):
        with contextlib.suppress(OSError):
            (home / f"{key}{suffix}").unlink()


def _in_memory(root: Path, paths: Sequence[str], preprocessing: Preprocessing, progress: Progress | None) -> Pixels:
    count = len(paths)
    pixels = np.empty((count, preprocessing.size, preprocessing.size, 3), np.uint8)
    digests, reasons, good = np.zeros((count, DIGEST), np.uint8), {}, 0
    with _pool() as pool:
        for first in range(0, count, BLOCK):
            rows = range(first, min(first + BLOCK, count))
            for row, found in _each(
                pool, lambda row: _read(root / paths[row], preprocessing, image_store.nothing), rows
            ):
                good = _keep(found, row, pixels, good, digests[row], reasons)
                if progress:
                    progress(row + 1, count)
    return Pixels(torch.from_numpy(pixels[:good]), digests, reasons, count, None)


def _build(
    place: Path, root: Path, paths: Sequence[str], preprocessing: Preprocessing, known: Known, progress: Progress | None
) -> Pixels:
    """Write the file of these images, from where an earlier attempt stopped; `place` is for what is unfinished."""
    home, row_bytes, count = place.parent, preprocessing.size * preprocessing.size * 3, len(paths)
    mark = known.mark()
    begun, left = _resume(place, mark, row_bytes)
    shown = image_store.shown_in(home, preprocessing.size)
    digests, reasons = np.zeros((count, DIGEST), np.uint8), begun.reasons
    digests[: begun.done] = np.frombuffer(begun.digests, np.uint8).reshape(-1, DIGEST)
    good, decoded, shard = begun.good, 0, max(1, SHARD // row_bytes)

    def one(row: int) -> _Row:
        if known.sure[row] and row in known.reasons:
            return _Row(known.digests[row].tobytes(), None, known.reasons[row], False)
        digest = known.digests[row].tobytes()
        pixels = shown(digest) if known.sure[row] else None
        return _read(root / paths[row], preprocessing, shown) if pixels is None else _Row(digest, pixels, None, False)

    with _pool() as pool, (place / "pixels").open("ab") as file, (place / "digests").open("ab") as marks:
        for first in range(begun.done, count, shard):
            rows = range(first, min(first + shard, count))
            block, kept = np.empty((len(rows), preprocessing.size, preprocessing.size, 3), np.uint8), 0
            for row, found in _each(pool, one, rows):
                kept = _keep(found, row, block, kept, digests[row], reasons)
                decoded += found.decoded
                if progress:
                    progress(row + 1, count)
            file.write(block[:kept].data)
            marks.write(digests[rows.start : rows.stop].data)
            good += kept
            for written in (file, marks):
                written.flush()
                os.fsync(written.fileno())
            write_json(place / "begun.json", {"mark": mark, "done": rows.stop, "good": good, "reasons": reasons})
    key = _finish(place, digests, reasons)
    if left not in (None, key):
        _remove(home, left)
    pixels = image_store.open_file(home, key, good, preprocessing.size)
    if pixels is None:
        raise OSError(f"{key} is gone before it was used")
    return Pixels(pixels, digests, reasons, decoded, key)


def _each(pool: ThreadPoolExecutor, make: Callable[[int], _Row], rows: range) -> Iterator[tuple[int, _Row]]:
    """What `make` gives for each row, in order; threads get some rows at a time, since handing one over costs time."""
    groups = [rows[start : start + GROUP] for start in range(0, len(rows), GROUP)]
    for group, found in zip(groups, pool.map(lambda group: [make(row) for row in group], groups), strict=True):
        yield from zip(group, found, strict=True)


def _keep(
    found: _Row, row: int, pixels: NDArray[np.uint8], at: int, digest: NDArray[np.uint8], reasons: dict[int, str]
) -> int:
    """Put an image where the next good one goes, or note why it is none; the number of good ones so far."""
    if found.digest:
        digest[:] = np.frombuffer(found.digest, np.uint8)
    if found.pixels is None:
        reasons[row] = found.reason or "cannot be read"
        return at
    pixels[at] = found.pixels
    return at + 1


def _read(file: Path, preprocessing: Preprocessing, shown: Shown) -> _Row:
    """Read a file's bytes, once, and decode them unless what they hold has been decoded before."""
    found = decode.read_bytes(file)
    if isinstance(found, str):
        return _Row(b"", None, found, True)
    digest = hashlib.sha256(found).digest()
    pixels = shown(digest)
    if pixels is not None:
        return _Row(digest, pixels, None, False)
    made = decode.decode_bytes(found, preprocessing)
    return _Row(digest, made.pixels, made.reason, True)


def _resume(place: Path, mark: str, row_bytes: int) -> tuple[_Begun, str | None]:
    """What an earlier attempt left that is whole; what it wrote beyond that is cut off.

    If files have changed since, that becomes a file of its own, whose key is given: images are taken from there.
    """
    pixels, marks, left = place / "pixels", place / "digests", None
    try:
        said = json.loads((place / "begun.json").read_text())
        done, good = int(said["done"]), int(said["good"])
        reasons = {int(row): str(reason) for row, reason in said["reasons"].items()}
        if pixels.stat().st_size >= good * row_bytes and marks.stat().st_size >= done * DIGEST:
            os.truncate(pixels, good * row_bytes)
            os.truncate(marks, done * DIGEST)
            if said["mark"] == mark:
                return _Begun(done, good, marks.read_bytes(), reasons), None
            left = _finish(place, np.fromfile(marks, np.uint8).reshape(-1, DIGEST), reasons)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # nothing whole: from the start
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    return _Begun(0, 0, b"", {}), left


def _finish(place: Path, digests: NDArray[np.uint8], reasons: Mapping[int, str]) -> str:
    """Give a file its name, by the contents in it; the digests beside it come last and say that it is whole."""
    good = digests[[row for row in range(len(digests)) if row not in reasons]]
    key = _key(good)
    os.replace(place / "pixels", place.with_name(f"{key}.u8"))
    with atomic(place.with_name(f"{key}.npy")) as aside, aside.open("wb") as file:
        np.save(file, good)
    shutil.rmtree(place, ignore_errors=True)
    return key


def _key(digests: NDArray[np.uint8]) -> str:
    return fingerprint([digests.tobytes().hex()])[:32]


@contextlib.contextmanager
def _pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(max(1, os.cpu_count() or 1)) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of what the rules already decide
        yield pool
