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
from numpy.typing import NDArray
from torch import Tensor

from taskgraft import seeding
from taskgraft.data import decode, file_index, pixel_cache, transforms
from taskgraft.data.class_names import find_matches
from taskgraft.data.file_index import PackedNames
from taskgraft.data.labeled_images import ImageSource, LabeledImages, list_source
from taskgraft.data.layouts import Entry, Listing
from taskgraft.data.transforms import Preprocessing
from taskgraft.errors import DataError
from taskgraft.results.files import atomic, escape_surrogates, fingerprint
from taskgraft.types import Images, Task

SPLITS = ("train", "val", "test")
VAL_FRACTION = 0.2  # of each class, where no validation images are given
MAX_EXCLUDED = 0.05  # a larger fraction of unreadable images is a broken copy, not a few bad files
SNAPSHOT_FORMAT = "5"  # raise it when the same images give another dataset, or the columns change


class Dataset(NamedTuple):
    """Verified images by split.

    Attributes:
        tasks: the labeled task, then the further tasks that were found.
        train, val, test: images; None where there is no such split.
        excluded: (path, reason) of what was left out.
        layout: the recognized layout, in words.
        fingerprint: SHA-256 over contents, labels and splits.
        decoded: how many images had to be decoded.
        notes: warnings about the data, and what was assumed.
        bits: of 16-bit files, as they were read (see `Preprocessing`); None where there are none and nothing was said.
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
    bits: int | None = None

    def splits(self) -> Iterator[tuple[str, str]]:
        """Yield (path, split) of every image."""
        for split in SPLITS:
            images: Images | None = getattr(self, split)
            yield from ((path, split) for path in (images.names if images else ()))


def open_images(
    data: ImageSource,
    task: str,
    preprocessing: Preprocessing,
    *,
    seed: int,
    classes: Sequence[str] | None = None,
    others: Sequence[Task] = (),
    cache_folder: Path | None = None,
    as_split: str | None = None,
    find_bits: bool = False,
    progress: pixel_cache.Progress | None = None,
) -> Dataset:
    """List, decode, verify and split the images at a data path.

    With a cache folder, files that have not changed are neither opened nor decoded again, and pixels, names and labels
    are mapped from there. Images in memory are decoded each time.

    Args:
        data: folder, tar archive or table; or images in memory.
        task: name of the task that the labels belong to.
        preprocessing: how images are brought to size and normalized.
        seed: decides which images become validation images, where there are none.
        classes: class names of an existing task; None = those of the training images, sorted.
        others: further tasks that a table or archive may have labels for.
        cache_folder: the cache; None = everything in memory.
        as_split: use the split of this name, or all images if there is none, without splitting.
        find_bits: find how many bits 16-bit files use, where the preprocessing does not say; for training.
        progress: called with (images read, images in total).

    Raises:
        DataError: the data cannot be understood, has fewer than two classes, classes that differ between splits, or
            too many unreadable images.
        SetupError: the cache cannot be written.
    """
    find_bits = find_bits and not preprocessing.bits
    reader = _DatasetReader(data, task, preprocessing, seed, classes, tuple(others), as_split, find_bits, progress)
    if cache_folder is None or isinstance(data, LabeledImages):
        return reader.read()[0]
    options = [
        str(data.resolve()),
        preprocessing.to_text(),
        *map(repr, [task, seed, classes, others, as_split, find_bits]),
    ]
    path = cache_folder / "sets" / f"{fingerprint([SNAPSHOT_FORMAT, decode.VERSION, *options])[:32]}.safetensors"
    state = file_index.read_data_state(data)
    dataset = load_snapshot(path, state.signature, cache_folder, preprocessing) if state else None
    if dataset is not None:
        return dataset
    with pixel_cache.lock_data(cache_folder, data) as name:
        state = file_index.read_data_state(data)
        dataset = load_snapshot(path, state.signature, cache_folder, preprocessing) if state else None
        if dataset is None:  # no other process has read it while this one waited for the lock
            dataset, key = reader.read(cache_folder, name)
            if state and state.settled and key:
                save_snapshot(path, state.signature, dataset, key)
    return dataset


@dataclass(frozen=True)
class _DatasetReader:
    """The arguments of `open_images`, and the steps from a listing to a dataset."""

    data: ImageSource
    task: str
    preprocessing: Preprocessing
    seed: int
    classes: Sequence[str] | None
    others: tuple[Task, ...]
    as_split: str | None
    find_bits: bool
    progress: pixel_cache.Progress | None

    def read(self, cache: Path | None = None, name: str = "") -> tuple[Dataset, str | None]:
        """The dataset, and the key of its pixels in the cache."""
        listing = list_source(self.data, self.task, tuple(other.name for other in self.others))
        entries = self._select(listing.entries)
        splits: list[str] = []

        def arrange(digests: NDArray[np.uint8], reasons: Mapping[int, str]) -> list[int]:
            self._limit_unreadable(listing, entries, reasons)
            splits[:] = self._assign_splits(entries, digests, reasons)
            return [row for split in SPLITS for row in _rows_of_split(splits, split)]

        def load(preprocessing: Preprocessing) -> pixel_cache.LoadedPixels:
            return pixel_cache.load_pixels(
                listing.root,
                [entry.path for entry in entries],
                preprocessing,
                cache=cache,
                name=name,
                arrange=arrange,
                progress=self.progress,
                read=self.data.read if isinstance(self.data, LabeledImages) else None,
            )

        loaded, bits = load(self.preprocessing), self.preprocessing.bits
        found = transforms.find_bits(loaded.peak)
        if self.find_bits:
            bits = found
            if bits not in (None, 16):  # only now is the largest value of all files known
                loaded = load(self.preprocessing._replace(bits=bits))
        notes = [*listing.notes, *_describe_bits(loaded.peak, bits, found, chosen=self.find_bits)]
        tasks = (
            Task(self.task, self._check_classes(entries, splits, listing.classes)),
            *(other for other in self.others if any(other.name in entry.labels for entry in entries)),
        )
        sets: dict[str, Images | None] = {}
        start = 0
        for split in SPLITS:
            rows = _rows_of_split(splits, split)
            pixels = loaded.pixels[start : start + len(rows)]
            sets[split] = self._build_images(pixels, [entries[row] for row in rows], tasks) if rows else None
            start += len(rows)
        dataset = Dataset(
            tasks,
            **sets,
            excluded=(
                *listing.skipped,
                *listing.missing,
                *((entries[row].path, why) for row, why in sorted(loaded.reasons.items())),
            ),
            layout=listing.layout,
            fingerprint=fingerprint(_fingerprint_lines(entries, splits, loaded.digests)),
            decoded=loaded.decoded,
            notes=(*notes, *_find_duplicates(entries, splits, loaded.digests, self.task)),
            bits=bits,
        )
        return dataset, loaded.key

    def _select(self, entries: Sequence[Entry]) -> list[Entry]:
        """The entries to open, in the order of the splits: pixels are only moved if validation is split off."""
        if self.as_split:
            selected = [entry for entry in entries if entry.split == self.as_split] or entries
            return [entry._replace(split=self.as_split) for entry in selected]
        return sorted(entries, key=lambda entry: SPLITS.index(entry.split or "train"))

    def _limit_unreadable(self, listing: Listing, entries: Sequence[Entry], reasons: Mapping[int, str]) -> None:
        count, total = len(reasons) + len(listing.missing), len(entries) + len(listing.missing)
        if count > MAX_EXCLUDED * total:
            unusable = [*((entries[row].path, why) for row, why in sorted(reasons.items())), *listing.missing]
            raise DataError(
                f"{self.data}: {count} of {total} images cannot be used, first {unusable[0][0]!r} ({unusable[0][1]}); "
                f"fix or remove them (at most {MAX_EXCLUDED:.0%} are skipped)"
            )

    def _assign_splits(
        self, entries: Sequence[Entry], digests: NDArray[np.uint8], reasons: Mapping[int, str]
    ) -> list[str]:
        """The split of each entry, "" for those that cannot be used."""
        splits = ["" if row in reasons else entry.split or "train" for row, entry in enumerate(entries)]
        if self.as_split or "val" in splits:
            return splits
        rows = [row for row in _rows_of_split(splits, "train") if self.task in entries[row].labels]
        labels = [entries[row].labels[self.task] for row in rows]
        contents = [digests[row].tobytes().hex() for row in rows]
        for row, split in zip(rows, split_by_content(contents, labels, VAL_FRACTION, self.seed), strict=True):
            splits[row] = split
        return splits

    def _check_classes(
        self, entries: Sequence[Entry], splits: Sequence[str], ordered: Sequence[str]
    ) -> tuple[str, ...]:
        """The classes of the task, after comparing those of every split with them; in the order of the source."""
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
        place = {name: number for number, name in enumerate(ordered)}
        return tuple(sorted(expected, key=lambda name: (place.get(name, len(place)), name)))

    def _build_images(self, pixels: Tensor, entries: Sequence[Entry], tasks: Sequence[Task]) -> Images:
        labels = {}
        for task in tasks:
            index = {name: number for number, name in enumerate(task.classes)}
            targets = (index.get(entry.labels.get(task.name, ""), -1) for entry in entries)
            labels[task.name] = torch.from_numpy(np.fromiter(targets, np.int64, len(entries)))
        names = tuple(entry.path for entry in entries)
        return Images(pixels, labels, names, self.preprocessing.mean, self.preprocessing.std)


def _describe_bits(peak: int, bits: int | None, found: int | None, *, chosen: bool) -> Iterator[str]:
    """A note on 16-bit files that do not use all of their bits."""
    if found in (None, 16):
        return
    if chosen:
        yield transforms.describe_bits(peak, found)
    elif bits is None:
        yield (
            f"the largest value of the 16-bit images is {peak} of 65535, so they are nearly black; --preprocessing "
            f"{found}bit makes {2**found - 1} white"
        )


def _rows_of_split(splits: Sequence[str], name: str) -> list[int]:
    return [row for row, split in enumerate(splits) if split == name]


def _fingerprint_lines(entries: Sequence[Entry], splits: Sequence[str], digests: NDArray[np.uint8]) -> Iterator[str]:
    for entry, split, digest in zip(entries, splits, digests, strict=True):
        if split:
            yield f"{digest.tobytes().hex()} {split} {sorted(entry.labels.items())}"


def _find_duplicates(
    entries: Sequence[Entry], splits: Sequence[str], digests: NDArray[np.uint8], task: str
) -> Iterator[str]:
    """Notes on equal images in two splits or two classes."""
    rows = np.flatnonzero(np.array(splits, dtype=object) != "")
    contents = np.ascontiguousarray(digests[rows]).view("S32")[:, 0]
    _, first, inverse = np.unique(contents, return_index=True, return_inverse=True)
    leaks, conflicts = 0, 0
    for copy, original in zip(rows.tolist(), rows[first[inverse]].tolist(), strict=True):
        if copy != original:
            leaks += splits[original] != splits[copy]
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
    validation: set[str] = set()
    assigned: set[str] = set()  # contents that are in several classes follow the first of them
    for label in sorted(members):
        ordered = sorted(members[label], key=lambda digest: seeding.derive(seed, "split", digest))
        if len(ordered) < 2:
            raise DataError(
                f"class {label!r} has one image, but a validation split needs two; add images, "
                "or provide train/ and val/ folders"
            )
        count = min(max(1, round(fraction * len(ordered))), len(ordered) - 1)
        validation.update(digest for digest in ordered[:count] if digest not in assigned)
        assigned.update(ordered)
    return ["val" if digest in validation else "train" for digest in digests]


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
            columns |= {f"{split}.label.{index}": images.labels[task.name] for index, task in enumerate(dataset.tasks)}
    fields = ("tasks", "excluded", "layout", "fingerprint", "notes", "bits")
    metadata = {"state": signature, "key": key, "sizes": sizes, **{name: getattr(dataset, name) for name in fields}}
    file_index.save_columns(path, columns, metadata)


def load_snapshot(path: Path, signature: str, folder: Path, preprocessing: Preprocessing) -> Dataset | None:
    """Map a saved dataset, if the data path has not changed and the pixels are still in the cache."""
    stored = file_index.load_columns(path)
    if stored is None or stored[1]["state"] != signature:
        return None
    columns, metadata = stored
    geometry = pixel_cache.geometry_folder(folder, preprocessing._replace(bits=metadata["bits"]))
    total = sum(metadata["sizes"].values())
    pixels = pixel_cache.map_pixels(geometry, metadata["key"], total, preprocessing)
    if pixels is None:
        return None
    tasks = tuple(Task(name, tuple(classes)) for name, classes in metadata["tasks"])
    sets: dict[str, Images | None] = dict.fromkeys(SPLITS)
    start = 0
    for split, count in metadata["sizes"].items():
        labels = {task.name: columns[f"{split}.label.{index}"] for index, task in enumerate(tasks)}
        names = PackedNames(columns[f"{split}.text"], columns[f"{split}.ends"])
        if split != "train":  # predictions on them are stored with their names
            names = tuple(names)
        sets[split] = Images(pixels[start : start + count], labels, names, preprocessing.mean, preprocessing.std)
        start += count
    return Dataset(
        tasks,
        **sets,
        excluded=tuple((name, reason) for name, reason in metadata["excluded"]),
        layout=metadata["layout"],
        fingerprint=metadata["fingerprint"],
        decoded=0,
        notes=tuple(metadata["notes"]),
        bits=metadata["bits"],
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
            old = {path for path, _ in list(csv.reader(file))[1:]}
    except (OSError, ValueError, csv.Error):
        return "other images"
    new = {escape_surrogates(path) for path, _ in dataset.splits()}
    changes = []
    for verb, paths in (("added", sorted(new - old)), ("removed", sorted(old - new))):
        if paths:
            more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
            changes.append(f"{verb} {', '.join(paths[:3])}{more}")
    return "; ".join(changes) or "the same names, but other contents, labels or splits"


def _write_csv(path: Path, header: tuple[str, str], rows: Iterable[tuple[str, str]]) -> None:
    with atomic(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows((escape_surrogates(path), value) for path, value in rows)
