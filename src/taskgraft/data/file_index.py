"""An index of files that have not changed, so that a second start opens none of them.

A file counts as unchanged if path, size, modification time, change time (ctime) and inode are the same, and if both
times were at least SETTLED in the past when it was read: a later write within the same tick of the file system's clock
would not show. The system sets the change time at every write and nobody can set it back, so nothing is missed. Where
there is no such time (Windows), every file is read again.

Tables are memory-mapped safetensors files with metadata in JSON: a million rows take no memory until they are used.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from taskgraft.data import decode, tar_shards
from taskgraft.data.layouts import IGNORED_NAMES, find_root, find_table
from taskgraft.data.tables import open_table
from taskgraft.results.files import atomic

SETTLED = 3.0  # seconds: the clock of the coarsest file system (FAT) ticks every two
HAS_CHANGE_TIME = os.name != "nt"  # elsewhere ctime is the time of creation
DEPTH = 2  # folders below a data folder that may hold images: split, class
CHUNK = 4096  # names that are decoded at a time in iteration

Stamp = tuple[int, int, int, int]  # size, modification and change in nanoseconds, inode
MISSING: Stamp = (-1, 0, 0, 0)


@dataclass(frozen=True)
class PackedNames:
    """Strings by row in two tensors: `text` [bytes] uint8, one after another, and where each ends, `ends` [N] int64."""

    text: Tensor
    ends: Tensor

    def __len__(self) -> int:
        """Number of strings."""
        return len(self.ends)

    def __getitem__(self, row: int, /) -> str:
        """The string of a row."""
        if not 0 <= row < len(self.ends):
            raise IndexError(row)
        start = int(self.ends[row - 1]) if row else 0
        return self.text[start : int(self.ends[row])].numpy().tobytes().decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        """All strings, in order."""
        start = 0
        for first in range(0, len(self.ends), CHUNK):
            ends = self.ends[first : first + CHUNK].tolist()
            chunk, base = self.text[start : ends[-1]].numpy().tobytes(), start
            for end in ends:
                yield chunk[start - base : end - base].decode("utf-8", "surrogateescape")
                start = end


def pack_names(names: Iterable[str]) -> PackedNames:
    """Store strings as tensors."""
    encoded = [name.encode("utf-8", "surrogateescape") for name in names]
    ends = np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)))
    text = np.frombuffer(b"".join(encoded), np.uint8).copy()
    return PackedNames(torch.from_numpy(text), torch.from_numpy(ends))


def save_columns(path: Path, columns: Mapping[str, Tensor], metadata: Any) -> None:
    """Write tensors and JSON-serializable metadata to a file, atomically."""
    with atomic(path) as temporary:
        tensors = {name: value.contiguous() for name, value in columns.items()}
        save_file(tensors, temporary, {"about": json.dumps(metadata)})


def load_columns(path: Path) -> tuple[dict[str, Tensor], Any] | None:
    """Map the tensors of a file; returns them and the metadata, or None if there is no complete file."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {})["about"])
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError, KeyError, ValueError):
        return None


class FileStates(NamedTuple):
    """The states of N files, read without opening them.

    Attributes:
        keys: [N] hashes of the paths.
        stamps: [N, 4] size, modification time, change time, inode.
        digests: [N, 32] SHA-256 of the contents; valid where `unchanged`.
        unchanged: [N] whether the file is as it was when its digest was stored.
        settled: [N] whether a digest may be stored once the file is read.
        peaks: [N] the largest value of images of 16 bits, 0 for others; valid where `unchanged`.
        reasons: why a file cannot be used, by row; valid where `unchanged`.
    """

    keys: NDArray[np.int64]
    stamps: NDArray[np.int64]
    digests: NDArray[np.uint8]
    unchanged: NDArray[np.bool_]
    settled: NDArray[np.bool_]
    peaks: NDArray[np.int64]
    reasons: Mapping[int, str]

    def signature(self) -> str:
        """Hash of the files, their states and order; a new one every time where a state is not settled."""
        salt = b"" if self.settled.all() else str(time.time_ns()).encode()
        return hashlib.sha256(self.keys.tobytes() + self.stamps.tobytes() + salt).hexdigest()


class DataState(NamedTuple):
    """Hash of the names, sizes, times and inodes of everything at a data path, and whether it is settled."""

    signature: str
    settled: bool


def read_data_state(data: Path) -> DataState | None:
    """Read the state of a data path without opening an image.

    Memory does not grow with the number of files. Returns None where it cannot be read.
    """
    if not HAS_CHANGE_TIME:
        return None
    limit = time.time_ns() - int(SETTLED * 1e9)
    signature, newest = hashlib.sha256(), 0
    try:
        data = find_root(data) if data.is_dir() else data
        table = find_table(data)
        if table:
            stamps = _stamp_table(table)
        else:
            stamps = _stamp_folder(data) if data.is_dir() else iter([(data.name, _to_stamp(os.stat(data)))])
        for name, stamp in stamps:
            signature.update(f"{name}\0{stamp}\n".encode("utf-8", "surrogateescape"))
            newest = max(newest, stamp[1], stamp[2])
    except OSError:
        return None
    return DataState(signature.hexdigest(), newest < limit)


def look_up(cache: Path, root: Path, paths: Sequence[str]) -> FileStates:
    """Look up N files, `paths` below `root`, in the index of a cache folder."""
    now, count, base = time.time_ns(), len(paths), os.path.abspath(root)
    hashes = (hashlib.blake2b(path.encode("utf-8", "surrogateescape"), digest_size=8).digest() for path in paths)
    keys = np.frombuffer(b"".join(hashes), np.int64)
    archives: dict[str, Stamp] = {}
    numbers = (number for path in paths for number in _read_stamp(f"{base}/{path}", archives))
    stamps = np.fromiter(numbers, np.int64, 4 * count).reshape(count, 4)
    settled = (stamps[:, 0] >= 0) & HAS_CHANGE_TIME
    settled &= stamps[:, 1:3].max(1, initial=0) < now - int(SETTLED * 1e9)
    no_digests, no_peaks = np.zeros((count, 32), np.uint8), np.zeros(count, np.int64)
    states = FileStates(keys, stamps, no_digests, np.zeros(count, bool), settled, no_peaks, {})
    stored = load_columns(_index_file(cache, root))
    if stored is None or not count or not len(stored[0]["key"]) or "peak" not in stored[0]:
        return states
    index, metadata = {name: value.numpy() for name, value in stored[0].items()}, stored[1]
    rows = np.searchsorted(index["key"], keys).clip(max=len(index["key"]) - 1)
    digests, reason = index["digest"][rows], index["reason"][rows]
    unchanged = settled & (index["key"][rows] == keys) & (index["stamp"][rows] == stamps).all(1)
    if metadata["rules"] != decode.VERSION:  # other rules may find other reasons
        unchanged &= reason == 0
    unreadable = np.flatnonzero(unchanged & (reason > 0))
    return states._replace(
        digests=np.where(unchanged[:, None], digests, 0),
        unchanged=unchanged,
        peaks=np.where(unchanged, index["peak"][rows], 0),
        reasons={int(row): metadata["reasons"][reason[row] - 1] for row in unreadable},
    )


def store(
    cache: Path,
    root: Path,
    states: FileStates,
    digests: NDArray[np.uint8],
    peaks: NDArray[np.int64],
    reasons: Mapping[int, str],
) -> None:
    """Store digests [N, 32] and peaks [N] of files that were read, and why some cannot be used, in a cache's index.

    Files that are not settled, or that could not even be opened (permissions may change without a change of the file),
    are left out.
    """
    rows = np.flatnonzero(states.settled & digests.any(1))
    texts = sorted({reasons[row] for row in rows.tolist() if row in reasons})
    numbers = {text: number for number, text in enumerate(texts, start=1)}  # 0: the file is readable
    new = {
        "key": states.keys[rows],
        "stamp": states.stamps[rows],
        "digest": digests[rows],
        "peak": peaks[rows],
        "reason": np.array([numbers.get(reasons.get(row, ""), 0) for row in rows.tolist()], np.int32),
    }
    stored = load_columns(_index_file(cache, root))
    if stored and stored[1]["rules"] == decode.VERSION and "peak" in stored[0]:
        old = {name: value.numpy() for name, value in stored[0].items()}
        others = ~np.isin(old["key"], new["key"])
        old["reason"] = np.where(old["reason"] > 0, old["reason"] + len(texts), 0).astype(np.int32)
        texts += stored[1]["reasons"]
        new = {name: np.concatenate([new[name], old[name][others]]) for name in new}
    order = np.argsort(new["key"], kind="stable")
    columns = {name: torch.from_numpy(column[order]) for name, column in new.items()}
    with suppress(OSError):  # a cache that cannot be written is slower, no more
        save_columns(_index_file(cache, root), columns, {"rules": decode.VERSION, "reasons": texts})


def _index_file(cache: Path, root: Path) -> Path:
    name = hashlib.sha256(os.path.realpath(root).encode("utf-8", "surrogateescape")).hexdigest()[:32]
    return cache / "files" / f"{name}.safetensors"


def _read_stamp(path: str, archives: dict[str, Stamp]) -> Stamp:
    """The stamp of a file, or of the archive that a member lies in; MISSING where there is neither."""
    parent = os.path.dirname(path) if f"{tar_shards.SUFFIX}/" in path.lower() else ""
    if parent in archives:
        return archives[parent]
    try:
        return _to_stamp(os.stat(path))
    except (FileNotFoundError, NotADirectoryError):
        archive = tar_shards.find_archive(Path(path)) if parent else None
        if archive is None:
            return MISSING
        return archives.setdefault(parent, _to_stamp(os.stat(archive)))
    except (OSError, ValueError):
        return MISSING


def _to_stamp(info: os.stat_result) -> Stamp:
    return info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino & (2**63 - 1)


def _stamp_table(path: Path) -> Iterator[tuple[str, Stamp]]:
    yield path.name, _to_stamp(os.stat(path))
    archives: dict[str, Stamp] = {}
    base = os.path.abspath(path.parent)
    for row in open_table(path).rows():
        for name in row.found or (row.text,):
            yield name, _read_stamp(f"{base}/{name}", archives)


def _stamp_folder(folder: Path, depth: int = DEPTH) -> Iterator[tuple[str, Stamp]]:
    with os.scandir(folder) as children:
        ordered = sorted(children, key=lambda child: child.name)
    for child in ordered:
        info = None
        if not child.name.startswith(".") and child.name.lower() not in IGNORED_NAMES:
            with suppress(OSError):  # a dangling link
                info = child.stat()
        if info is None:
            yield child.name, MISSING
            continue
        if not stat.S_ISDIR(info.st_mode):
            yield child.name, _to_stamp(info)
            continue
        yield f"{child.name}/", (0, 0, 0, 0)
        if depth:
            yield from _stamp_folder(Path(child.path), depth - 1)
        yield "/", (0, 0, 0, 0)  # back in the folder above
