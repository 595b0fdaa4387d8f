"""Which files were read before and have not changed since, so that a second start opens none of them.

A file counts as unchanged if path, size, time of modification, time of change (ctime) and inode are as they were, and
if both times lay SETTLED before it was read: a later write in the same tick of the file system's clock would not show.
The time of change is set by the system at every write and cannot be set back, so nothing is missed. Where there is no
such time (Windows), every file is read again.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from taskgraft.data import decode, packed_names, tar_shards
from taskgraft.data.layouts import JUNK, find_table, read_table

SETTLED = 3.0  # seconds: the clock of the coarsest file system (FAT) ticks every two
TELLS = os.name != "nt"  # whether ctime is the time of change
DEPTH = 2  # folders below a data folder that may hold images: split, class

Stamp = tuple[int, int, int, int]  # size, modification and change in nanoseconds, inode
GONE: Stamp = (-1, 0, 0, 0)


class Known(NamedTuple):
    """What is known of N files without opening them; `digests` and `reasons` hold where `sure`.

    `keys` [N] are hashes of the paths, `stamps` [N, 4], `digests` [N, 32] are SHA-256 of the contents; `reasons` say
    why a row cannot be used. `settled` [N] tells which rows may be noted once they are read.
    """

    keys: NDArray[np.int64]
    stamps: NDArray[np.int64]
    digests: NDArray[np.uint8]
    sure: NDArray[np.bool_]
    settled: NDArray[np.bool_]
    reasons: Mapping[int, str]

    def taken(self, rows: Sequence[int]) -> Known:
        """What is known of some of the files, in another order."""
        index = np.asarray(rows, np.int64)
        reasons = {at: self.reasons[row] for at, row in enumerate(rows) if row in self.reasons}
        return Known(
            self.keys[index], self.stamps[index], self.digests[index], self.sure[index], self.settled[index], reasons
        )

    def mark(self) -> str:
        """A hash of which files these are, in which state and order; another every time where that is not sure."""
        parts = [self.keys.tobytes(), self.stamps.tobytes()]
        if not self.settled.all():
            parts.append(str(time.time_ns()).encode())
        return hashlib.sha256(b"".join(parts)).hexdigest()


class State(NamedTuple):
    """A hash of the names, sizes, times and inodes of all that lies at a data path; whether it may be relied on."""

    mark: str
    settled: bool


def state_of(data: Path) -> State | None:
    """The state of a data path, found without opening an image; None where nothing can be told.

    Memory does not grow with the number of files.
    """
    if not TELLS:
        return None
    limit = time.time_ns() - int(SETTLED * 1e9)
    total, youngest = hashlib.sha256(), 0
    try:
        table = find_table(data)
        found = _of_table(table) if table else _of_folder(data) if data.is_dir() else _of_file(data)
        for name, stamp in found:
            total.update(f"{name}\0{stamp}\n".encode("utf-8", "surrogateescape"))
            youngest = max(youngest, stamp[1], stamp[2])
    except OSError:
        return None
    return State(total.hexdigest(), youngest < limit)


def look_up(folder: Path | None, root: Path, paths: Sequence[str]) -> Known:
    """What is known of files below a root, from the ledger in the cache folder; nothing without one."""
    now, count = time.time_ns(), len(paths)
    base = os.path.abspath(root)
    hashes = (hashlib.blake2b(path.encode("utf-8", "surrogateescape"), digest_size=8).digest() for path in paths)
    keys = np.frombuffer(b"".join(hashes), np.int64)
    archives: dict[str, Stamp] = {}
    flat = (value for path in paths for value in _stamp(f"{base}/{path}", archives))
    stamps = np.fromiter(flat, np.int64, 4 * count).reshape(count, 4)
    there = (stamps[:, 0] >= 0) & TELLS
    settled = there & (stamps[:, 1:3].max(1, initial=0) < now - int(SETTLED * 1e9))
    known = Known(keys, stamps, np.zeros((count, 32), np.uint8), np.zeros(count, bool), settled, {})
    stored = packed_names.load(_file(folder, root)) if folder else None
    if stored is None or not count or not len(stored[0]["key"]):
        return known
    old, about = {name: value.numpy() for name, value in stored[0].items()}, stored[1]
    at = np.searchsorted(old["key"], keys).clip(max=len(old["key"]) - 1)
    same = settled & (old["key"][at] == keys) & (old["stamp"][at] == stamps).all(1)
    if about["rules"] != decode.VERSION:  # other rules may find other reasons
        same &= old["reason"][at] == 0
    bad = np.flatnonzero(same & (old["reason"][at] > 0))
    reasons = {int(row): about["reasons"][old["reason"][at[row]] - 1] for row in bad}
    return known._replace(digests=np.where(same[:, None], old["digest"][at], 0), sure=same, reasons=reasons)


def note(folder: Path, root: Path, known: Known, digests: NDArray[np.uint8], reasons: Mapping[int, str]) -> None:
    """Note what was read: the digest of each file that is settled, and why those that cannot be used are not.

    What could not even be opened is not noted: it may be mended without a change of the file.
    """
    rows = np.flatnonzero(known.settled & digests.any(1))
    names = sorted({reasons[row] for row in rows.tolist() if row in reasons})
    number = {name: at + 1 for at, name in enumerate(names)}
    new = {
        "key": known.keys[rows],
        "stamp": known.stamps[rows],
        "digest": digests[rows],
        "reason": np.array([number.get(reasons.get(row, ""), 0) for row in rows.tolist()], np.int32),
    }
    stored = packed_names.load(_file(folder, root))
    if stored and stored[1]["rules"] == decode.VERSION:
        old, before = {name: value.numpy() for name, value in stored[0].items()}, stored[1]["reasons"]
        kept = ~np.isin(old["key"], new["key"])
        old["reason"] = np.where(old["reason"] > 0, old["reason"] + len(names), 0).astype(np.int32)
        names += before
        new = {name: np.concatenate([new[name], old[name][kept]]) for name in new}
    order = np.argsort(new["key"], kind="stable")
    with suppress(OSError):  # a cache that cannot be written is slower, no more
        about = {"rules": decode.VERSION, "reasons": names}
        packed_names.save(_file(folder, root), {name: torch.from_numpy(new[name][order]) for name in new}, about)


def _file(folder: Path, root: Path) -> Path:
    place = hashlib.sha256(os.path.realpath(root).encode("utf-8", "surrogateescape")).hexdigest()[:32]
    return folder / "files" / f"{place}.safetensors"


def _stamp(path: str, archives: dict[str, Stamp]) -> Stamp:
    """The stamp of a file, or of the archive that a member lies in; GONE where there is neither."""
    home = os.path.dirname(path) if f"{tar_shards.SUFFIX}/" in path.lower() else ""
    if home in archives:
        return archives[home]
    try:
        return _of(os.stat(path))
    except (FileNotFoundError, NotADirectoryError):
        archive = tar_shards.find_archive(Path(path)) if home else None
        found = _of(os.stat(archive)) if archive else GONE
        return archives.setdefault(home, found) if archive else found
    except (OSError, ValueError):
        return GONE


def _of(info: os.stat_result) -> Stamp:
    return info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino & (2**63 - 1)


def _of_file(path: Path) -> Iterator[tuple[str, Stamp]]:
    yield path.name, _of(os.stat(path))


def _of_table(path: Path) -> Iterator[tuple[str, Stamp]]:
    yield from _of_file(path)
    archives: dict[str, Stamp] = {}
    base = os.path.abspath(path.parent)
    for _, row in read_table(path):
        where = (row.get("path") or row.get("file_name") or row.get("filename") or "").strip()
        yield where, _stamp(f"{base}/{where}", archives)


def _of_folder(folder: Path, depth: int = DEPTH) -> Iterator[tuple[str, Stamp]]:
    with os.scandir(folder) as found:
        items = sorted(found, key=lambda item: item.name)
    for item in items:
        if item.name.startswith(".") or item.name.lower() in JUNK:
            yield item.name, GONE
            continue
        try:
            info = item.stat()
        except OSError:  # a link to nowhere
            yield item.name, GONE
            continue
        if not stat.S_ISDIR(info.st_mode):
            yield item.name, _of(info)
            continue
        yield f"{item.name}/", (0, 0, 0, 0)
        if depth:
            yield from _of_folder(Path(item.path), depth - 1)
        yield "/", (0, 0, 0, 0)  # what follows lies above
