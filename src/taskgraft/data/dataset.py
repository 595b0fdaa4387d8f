"""A data path becomes verified images by split, with what was excluded and why."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from taskgraft import seeding
from taskgraft.data import decode, file_index, pixel_cache
from taskgraft.data.class_names import find_matches
from taskgraft.data.file_index import FileStates, PackedNames
from taskgraft.data.layouts import Entry, Listing, list_images
from taskgraft.data.transforms import Preprocessing
from taskgraft.errors import DataError
from taskgraft.results.files import atomic, fingerprint, shown
from taskgraft.types import Images, Task

SPLITS = ("train", "val", "test")
VAL_FRACTION = 0.2  # of each class, where no validation images are given
MAX_EXCLUDED = 0.05  # a larger fraction of unreadable images is a broken copy, not a few bad files
SNAPSHOT_FORMAT = "2"  # raise it when the same images give another dataset, or the columns change


class Dataset(NamedTuple):
    """Verified images by split.

    Attributes:
        tasks: the labeled task, then the further tasks that were found.
        train, val, test: images; None where there is no such split.
        excluded: (path, reason) of what was left out.
        layout: what was recognized, for people.
        fingerprint: SHA-256 over contents, labels and splits.
        decoded: how many images had to be decoded.
        notes: what a careful person wants to know before training.
    """

    tasks: tuple[Task, ...]
    train: Images | None
    val: Images | None
    test: Images | None
    excluded: tuple[tuple[str, str], ...]
    layout: str
    fingerprint: str
    decoded: int
    notes: tuple[str, ...]

    def splits(self) -> Iterator[tuple[str, str]]:
        """Yield (path, split) of every image."""
        for split in SPLITS:
            images: Images | None = getattr(self, split)
            yield from ((path, split) for path in (images.names if images else ()))


def open_images(
    data: Path,
    task: str,
    preprocessing: Preprocessing,
    *,
    seed: int,
    classes: Sequence[str] | None = None,
    others: Sequence[Task] = (),
    cache_folder: Path | None = None,
    as_split: str | None = None,
    progress: pixel_cache.Progress | None = None,
) -> Dataset:
    """List, decode, verify and split the images at a data path.

    With a cache folder, files that have not changed are neither opened nor decoded again, and pixels, names and labels
    are mapped from there.

    Args:
        data: folder, tar archive or table.
        task: name of the task that the labels belong to.
        preprocessing: how images are brought to size and normalized.
        seed: decides which images become validation images, where there are none.
        classes: class names of an existing task; None = those of the training images, sorted.
        others: further tasks that a table or archive may have labels for.
        cache_folder: the cache; None = everything in memory.
        as_split: use the split of this name, or all images if there is none, without splitting.
        progress: called with (images read, images in total).

    Raises:
        DataError: the data cannot be understood, has fewer than two classes, classes that differ between splits, or
            too many unreadable images.
        SetupError: the cache cannot be written.
    """
    opener = _Opener(data, task, preprocessing, seed, classes, tuple(others), as_split, cache_folder, progress)
    if cache_folder is None:
        return opener.open(None)[0]
    parts = [SNAPSHOT_FORMAT, decode.VERSION, str(data.resolve()), preprocessing.to_text()]
    parts += map(repr, [task, seed, classes, others, as_split])
    snapshot = cache_folder / "sets" / f"{fingerprint(parts)[:32]}.safetensors"
    state = file_index.read_data_state(data)
    found = load_snapshot(snapshot, state.signature, cache_folder, preprocessing) if state else None
    if found is not None:
        return found
    with pixel_cache.lock_data(cache_folder, data) as name:  # another process may just have done it
        state = file_index.read_data_state(data)
        found = load_snapshot(snapshot, state.signature, cache_folder, preprocessing) if state else None
        if found is None:
            found, key = opener.open(name)
            if state and state.settled and key:
                save_snapshot(snapshot, state.signature, found, key)
    return found


class _Verified(NamedTuple):
    """Readable images: their pixels in the order of the splits, and the split of each entry ("" = unreadable)."""

    pixels: Tensor
    key: str | None
    splits: list[str]
    states: FileStates
    decoded: int


@dataclass(frozen=True)
class _Opener:
    """The arguments of `open_images`, and the steps from a listing to a dataset."""

    data: Path
    task: str
    preprocessing: Preprocessing
    seed: int
    classes: Sequence[str] | None
    others: tuple[Task, ...]
    as_split: str | None
    cache: Path | None
    progress: pixel_cache.Progress | None

    def open(self, name: str | None) -> tuple[Dataset, str | None]:
        """The dataset, and the key of its pixels in the cache, where this data path is called `name`."""
        listing = list_images(self.data, self.task, tuple(other.name for other in self.others))
        entries = self._select(listing)
        verified = self._verify(listing.root, entries, name)
        task = Task(self.task, self._check_classes(entries, verified.splits))
        tasks = (task, *(other for other in self.others if any(other.name in entry.labels for entry in entries)))
        sets: dict[str, Images | None] = {}
        start = 0
        for split in SPLITS:
            rows = _rows_of_split(verified.splits, split)
            sets[split] = self._build_images(verified.pixels[start : start + len(rows)], rows, entries, tasks)
            start += len(rows)
        unreadable = ((entries[row].path, reason) for row, reason in sorted(verified.states.reasons.items()))
        dataset = Dataset(
            tasks,
            sets["train"],
            sets["val"],
            sets["test"],
            (*listing.skipped, *unreadable),
            listing.layout,
            fingerprint(_fingerprint_lines(entries, verified)),
            verified.decoded,
            tuple(_find_duplicates(entries, verified, self.task)),
        )
        return dataset, verified.key

    def _select(self, listing: Listing) -> tuple[Entry, ...]:
        chosen = tuple(entry for entry in listing.entries if entry.split == self.as_split)
        return chosen if self.as_split and chosen else listing.entries

    def _load(self, root: Path, entries: Sequence[Entry], states: FileStates, rows: Sequence[int], name: str | None):
        target = pixel_cache.CacheTarget(self.cache, name, states.select(rows)) if self.cache and name else None
        paths = [entries[row].path for row in rows]
        return pixel_cache.load_pixels(root, paths, self.preprocessing, target, self.progress)

    def _verify(self, root: Path, entries: Sequence[Entry], name: str | None) -> _Verified:
        """Read the files that are not known, assign splits, and bring the pixels into the order of the splits.

        Files are read in the order of the given splits; only where validation images are split off by their contents
        does the final order differ, and pixels are copied once more.
        """
        states = file_index.look_up(self.cache, root, [entry.path for entry in entries])
        ranks = {None: 0} | {split: rank for rank, split in enumerate(SPLITS)}
        order = sorted(range(len(entries)), key=lambda row: 0 if self.as_split else ranks[entries[row].split])
        first = None
        if not states.unchanged.all():
            first = self._load(root, entries, states, order, name)
            reasons = {order[at]: reason for at, reason in first.reasons.items()}
            digests = np.empty_like(states.digests)
            digests[order] = first.digests
            if self.cache:
                file_index.note(self.cache, root, states, digests, reasons)
            states = states._replace(digests=digests, unchanged=np.ones(len(entries), bool), reasons=reasons)
        self._limit_unreadable(entries, states.reasons)
        splits = self._assign_splits(entries, states)
        readable = [row for row in order if row not in states.reasons]
        final = [row for split in SPLITS for row in _rows_of_split(splits, split)]
        if first is None or (self.cache and final != readable):
            last = self._load(root, entries, states, final, name)
            if first and self.cache and first.key not in (None, last.key):
                pixel_cache.discard(self.cache, self.preprocessing, first.key)
            return _Verified(last.pixels, last.key, splits, states, last.decoded + (first.decoded if first else 0))
        at = {row: position for position, row in enumerate(readable)}
        pixels = first.pixels if final == readable else first.pixels[torch.tensor([at[row] for row in final])]
        return _Verified(pixels, first.key, splits, states, first.decoded)

    def _limit_unreadable(self, entries: Sequence[Entry], reasons: Mapping[int, str]) -> None:
        if len(reasons) > MAX_EXCLUDED * len(entries):
            first = min(reasons)
            raise DataError(
                f"{self.data}: {len(reasons)} of {len(entries)} images cannot be used, first {entries[first].path!r} "
                f"({reasons[first]}); fix or remove them (at most {MAX_EXCLUDED:.0%} are skipped)"
            )

    def _assign_splits(self, entries: Sequence[Entry], states: FileStates) -> list[str]:
        """The split of each entry, "" for those that cannot be used."""
        if self.as_split:
            return ["" if row in states.reasons else self.as_split for row in range(len(entries))]
        splits = ["" if row in states.reasons else entry.split or "train" for row, entry in enumerate(entries)]
        if "val" in splits:
            return splits
        rows = [row for row in _rows_of_split(splits, "train") if self.task in entries[row].labels]
        labels = [entries[row].labels[self.task] for row in rows]
        digests = [states.digests[row].tobytes().hex() for row in rows]
        for row, split in zip(rows, split_by_content(digests, labels, VAL_FRACTION, self.seed), strict=True):
            splits[row] = split
        return splits

    def _check_classes(self, entries: Sequence[Entry], splits: Sequence[str]) -> tuple[str, ...]:
        """The classes of the task, after comparing those of every split with them."""
        present: dict[str, set[str]] = {split: set() for split in SPLITS}
        for entry, split in zip(entries, splits, strict=True):
            if split and self.task in entry.labels:
                present[split].add(entry.labels[self.task])
        expected = set(self.classes) if self.classes is not None else present["train"]
        for split, names in present.items():
            unknown = sorted(names - expected)
            if unknown:
                match = find_matches(unknown[:1], sorted(expected))
                hint = f"did you mean {match[0].suggestion!r}?" if match else "rename it or leave it out"
                owner = "the model lacks" if self.classes is not None else "the training images lack"
                raise DataError(f"{self.data}: {split} has the class {unknown[0]!r}, which {owner}; {hint}")
        if self.classes is not None:
            return tuple(self.classes)
        if len(expected) < 2:
            raise DataError(
                f"{self.data}: {len(expected)} class ({', '.join(sorted(expected))}), but a classifier needs two; "
                "add images of another"
            )
        return tuple(sorted(expected))

    def _build_images(
        self, pixels: Tensor, rows: Sequence[int], entries: Sequence[Entry], tasks: Sequence[Task]
    ) -> Images | None:
        if not rows:
            return None
        labels = {}
        for task in tasks:
            index = {name: number for number, name in enumerate(task.classes)}
            target = (index.get(entries[row].labels.get(task.name, ""), -1) for row in rows)
            labels[task.name] = torch.from_numpy(np.fromiter(target, np.int64, len(rows)))
        names = tuple(entries[row].path for row in rows)
        return Images(pixels, labels, names, self.preprocessing.mean, self.preprocessing.std)


def _rows_of_split(splits: Sequence[str], name: str) -> list[int]:
    return [row for row, split in enumerate(splits) if split == name]


def _fingerprint_lines(entries: Sequence[Entry], verified: _Verified) -> Iterator[str]:
    for row, split in enumerate(verified.splits):
        if split:
            yield f"{verified.states.digests[row].tobytes().hex()} {split} {sorted(entries[row].labels.items())}"


def _find_duplicates(entries: Sequence[Entry], verified: _Verified, task: str) -> Iterator[str]:
    """Notes on equal images in two splits or two classes."""
    rows = np.flatnonzero(np.array(verified.splits, dtype=object) != "")
    contents = np.ascontiguousarray(verified.states.digests[rows]).view("S32")[:, 0]
    _, first, which = np.unique(contents, return_index=True, return_inverse=True)
    leaks, conflicts = 0, 0
    for copy, original in zip(rows.tolist(), rows[first[which]].tolist(), strict=True):
        if copy != original:
            leaks += verified.splits[original] != verified.splits[copy]
            conflicts += entries[original].labels.get(task) != entries[copy].labels.get(task)
    if leaks:
        yield f"{leaks} image(s) are in two splits: validation results are too optimistic"
    if conflicts:
        yield f"{conflicts} image(s) are in two classes: their labels contradict each other"


def split_by_content(digests: Sequence[str], labels: Sequence[str], fraction: float, seed: int) -> list[str]:
    """Assign each image to "train" or "val" by the hash of its content, stratified by class.

    Equal contents get the same split, and further images leave the split of the others almost unchanged.

    Args:
        digests: content hash of each image.
        labels: class of each image.
        fraction: part of each class that becomes validation images.
        seed: another seed gives another split.

    Raises:
        DataError: a class has fewer than two different images.
    """
    members: dict[str, set[str]] = defaultdict(set)
    for digest, label in zip(digests, labels, strict=True):
        members[label].add(digest)
    held: set[str] = set()
    assigned: set[str] = set()  # contents that are in several classes follow the first of them
    for label in sorted(members):
        ordered = sorted(members[label], key=lambda digest: seeding.derive(seed, "split", digest))
        if len(ordered) < 2:
            raise DataError(
                f"class {label!r} has one image, but a validation split needs two; add images, "
                "or provide train/ and val/ folders"
            )
        count = min(max(1, round(fraction * len(ordered))), len(ordered) - 1)
        held.update(digest for digest in ordered[:count] if digest not in assigned)
        assigned.update(ordered)
    return ["val" if digest in held else "train" for digest in digests]


def save_snapshot(path: Path, signature: str, dataset: Dataset, key: str) -> None:
    """Save everything about a dataset whose pixels are in the cache.

    Args:
        path: the snapshot's file.
        signature: state of the data path that the dataset was read from.
        dataset: its splits' pixels must follow one another in the cache's file.
        key: name of that file.
    """
    columns: dict[str, Tensor] = {}
    sizes = {}
    for split in SPLITS:
        images: Images | None = getattr(dataset, split)
        if images is not None:
            names = file_index.pack_names(images.names)
            sizes[split] = len(names)
            columns |= {f"{split}.text": names.text, f"{split}.ends": names.ends}
            columns |= {f"{split}.label.{at}": images.labels[task.name] for at, task in enumerate(dataset.tasks)}
    fields = ("tasks", "excluded", "layout", "fingerprint", "notes")
    metadata = {"state": signature, "key": key, "sizes": sizes, **{name: getattr(dataset, name) for name in fields}}
    file_index.save_columns(path, columns, metadata)


def load_snapshot(path: Path, signature: str, folder: Path, preprocessing: Preprocessing) -> Dataset | None:
    """Map a saved dataset, if the data path has not changed and the pixels are still in the cache."""
    stored = file_index.load_columns(path)
    if stored is None or stored[1]["state"] != signature:
        return None
    columns, metadata = stored
    home, total = pixel_cache.geometry_folder(folder, preprocessing), sum(metadata["sizes"].values())
    pixels = pixel_cache.map_pixels(home, metadata["key"], total, preprocessing.size)
    if pixels is None:
        return None
    tasks = tuple(Task(name, tuple(classes)) for name, classes in metadata["tasks"])
    sets: dict[str, Images | None] = dict.fromkeys(SPLITS)
    start = 0
    for split, count in metadata["sizes"].items():
        labels = {task.name: columns[f"{split}.label.{at}"] for at, task in enumerate(tasks)}
        names = PackedNames(columns[f"{split}.text"], columns[f"{split}.ends"])
        if split != "train":  # predictions on them are stored with their names
            names = tuple(names)
        sets[split] = Images(pixels[start : start + count], labels, names, preprocessing.mean, preprocessing.std)
        start += count
    return Dataset(
        tasks,
        sets["train"],
        sets["val"],
        sets["test"],
        tuple((name, reason) for name, reason in metadata["excluded"]),
        metadata["layout"],
        metadata["fingerprint"],
        0,
        tuple(metadata["notes"]),
    )


def count_classes(images: Images | None, task: Task) -> dict[str, int]:
    """Count the images of each class."""
    if images is None:
        return {}
    target = images.labels[task.name]
    counts = torch.bincount(target[target >= 0], minlength=len(task.classes)).tolist()
    return dict(zip(task.classes, counts, strict=True))


def write_split_lists(folder: Path, dataset: Dataset) -> None:
    """Write `excluded.csv` and `split.csv` into a run folder."""
    _write_csv(folder / "excluded.csv", ("path", "reason"), dataset.excluded)
    _write_csv(folder / "split.csv", ("path", "split"), dataset.splits())


def describe_changes(folder: Path, dataset: Dataset) -> str:
    """Describe how a dataset differs from the lists in a run folder, by file names where those differ."""
    try:
        with (folder / "split.csv").open(encoding="utf-8", newline="") as file:
            before = {path for path, _ in list(csv.reader(file))[1:]}
    except (OSError, ValueError, csv.Error):
        return "other images"
    now = {shown(path) for path, _ in dataset.splits()}
    parts = []
    for word, names in (("added", sorted(now - before)), ("removed", sorted(before - now))):
        if names:
            parts.append(f"{word} {', '.join(names[:3])}" + (f" and {len(names) - 3} more" if len(names) > 3 else ""))
    return "; ".join(parts) or "the same names, but other contents, labels or splits"


def _write_csv(path: Path, header: tuple[str, str], rows: Iterable[tuple[str, str]]) -> None:
    with atomic(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows((shown(path), word) for path, word in rows)
