"""A data path -> verified sets of images, with what was excluded and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from taskgraft.data import file_index, label_cache, pixel_cache, splitting
from taskgraft.data.class_names import find_matches
from taskgraft.data.layouts import Entry, Listing, list_images
from taskgraft.data.splits import SPLITS, Dataset, count_classes, describe_changes, write_split_lists  # noqa: F401
from taskgraft.data.transforms import Preprocessing
from taskgraft.errors import DataError
from taskgraft.results.files import fingerprint
from taskgraft.types import Images, Task

MAX_EXCLUDED = 0.05  # more than this share unreadable is a broken copy, not a few bad files


class _Asked(NamedTuple):
    """What decides the sets, beside the images."""

    data: Path
    task: str
    preprocessing: Preprocessing
    seed: int
    classes: Sequence[str] | None
    others: Sequence[Task]
    as_split: str | None


class _Folder(NamedTuple):
    """The cache, and what this data path is called there."""

    path: Path
    name: str


class _Found(NamedTuple):
    """Images that can be used: `pixels` one split after another, `placed` the split of each entry ("" = unusable)."""

    pixels: torch.Tensor
    key: str | None
    placed: list[str]
    digests: NDArray[np.uint8]
    reasons: Mapping[int, str]
    decoded: int


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
    """List, decode, check and split the images at `data`.

    `classes` fixes the classes of `task` (an old one); without it they are those of the training images,
    sorted. `others` are further tasks whose columns a table may have. `as_split="val"` takes a split of that name
    where there is one and all images otherwise, without splitting. With a cache folder, images that have not
    changed are neither opened nor decoded again, and pixels, names and labels are mapped from there. Raises
    TaskgraftError
    for anything that cannot be understood, fewer than two classes, classes that differ between splits, or too many
    unreadable images.
    """
    asked = _Asked(data, task, preprocessing, seed, classes, others, as_split)
    if cache_folder is None:
        return _opened(asked, None, progress)[0]
    place = label_cache.place_of(cache_folder, data, preprocessing, [task, seed, classes, others, as_split])
    state = file_index.state_of(data)
    found = label_cache.load(place, state.mark, cache_folder, preprocessing) if state else None
    if found is not None:
        return found
    with pixel_cache.alone(cache_folder, data) as name:  # another process may just have done it
        state = file_index.state_of(data)
        found = label_cache.load(place, state.mark, cache_folder, preprocessing) if state else None
        if found is None:
            found, key = _opened(asked, _Folder(cache_folder, name), progress)
            if state and state.settled and key:
                label_cache.save(place, state.mark, found, key)
    return found


def _opened(asked: _Asked, folder: _Folder | None, progress: pixel_cache.Progress | None) -> tuple[Dataset, str | None]:
    """The sets, and under which key their pixels lie in the cache."""
    listing = list_images(asked.data, asked.task, tuple(other.name for other in asked.others))
    entries = _chosen(listing, asked.as_split)
    found = _read(listing.root, entries, asked, folder, progress)
    own = _classes(asked.data, asked.task, entries, found.placed, asked.classes)
    tasks = (Task(asked.task, own), *(other for other in asked.others if any(other.name in e.labels for e in entries)))
    sets, start = {}, 0
    for name in SPLITS:
        rows = _rows(found.placed, name)
        sets[name] = _images(found.pixels[start : start + len(rows)], rows, entries, tasks, asked.preprocessing)
        start += len(rows)
    opened = Dataset(
        tasks,
        sets["train"],
        sets["val"],
        sets["test"],
        (*listing.skipped, *((entries[row].path, reason) for row, reason in sorted(found.reasons.items()))),
        listing.layout,
        fingerprint(_lines(entries, found)),
        found.decoded,
        tuple(_remarks(entries, found, asked.task)),
    )
    return opened, found.key


def _chosen(listing: Listing, as_split: str | None) -> tuple[Entry, ...]:
    if as_split is None or not any(entry.split == as_split for entry in listing.entries):
        return listing.entries
    return tuple(entry for entry in listing.entries if entry.split == as_split)


def _read(
    root: Path, entries: Sequence[Entry], asked: _Asked, folder: _Folder | None, progress: pixel_cache.Progress | None
) -> _Found:
    """Read what is not known, place every image, and bring the pixels into the order of the splits.

    Images are read in the order of the splits that are given. Only where a split is made of their contents is it
    another one in the end.
    """
    paths, given = [entry.path for entry in entries], {None: 0} | {name: at for at, name in enumerate(SPLITS)}
    known = file_index.look_up(folder.path if folder else None, root, paths)
    order = sorted(range(len(entries)), key=lambda row: 0 if asked.as_split else given[entries[row].split])
    first = None

    def load(rows: Sequence[int]) -> pixel_cache.Pixels:
        store = pixel_cache.Store(folder.path, folder.name, known.taken(rows)) if folder else None
        return pixel_cache.load_pixels(root, [paths[row] for row in rows], asked.preprocessing, store, progress)

    if not known.sure.all():
        first = load(order)
        reasons = {order[at]: reason for at, reason in first.reasons.items()}
        digests = np.empty_like(known.digests)
        digests[order] = first.digests
        if folder:
            file_index.note(folder.path, root, known, digests, reasons)
        known = known._replace(digests=digests, sure=np.ones(len(entries), bool), reasons=reasons)
    _few(asked.data, entries, known.reasons)
    placed = _place(entries, known.reasons, known.digests, asked)
    good = [row for row in order if row not in known.reasons]
    final = [row for name in SPLITS for row in _rows(placed, name)]
    if first is None or (folder and final != good):
        last = load(final)
        if first and folder and first.key not in (None, last.key):
            pixel_cache.discard(folder.path, asked.preprocessing, first.key)
        decoded = last.decoded + (first.decoded if first else 0)
        return _Found(last.pixels, last.key, placed, known.digests, known.reasons, decoded)
    place = {row: at for at, row in enumerate(good)}
    pixels = first.pixels if final == good else first.pixels[torch.tensor([place[row] for row in final])]
    return _Found(pixels, first.key, placed, known.digests, known.reasons, first.decoded)


def _few(data: Path, entries: Sequence[Entry], reasons: Mapping[int, str]) -> None:
    """Raises TaskgraftError where too many images cannot be used."""
    if len(reasons) > MAX_EXCLUDED * len(entries):
        first = min(reasons)
        raise DataError(
            f"{data}: {len(reasons)} of {len(entries)} images cannot be used, first {entries[first].path!r} "
            f"({reasons[first]}); mend or remove them (at most {MAX_EXCLUDED:.0%} are passed over)"
        )


def _rows(placed: Sequence[str], name: str) -> list[int]:
    return [row for row, part in enumerate(placed) if part == name]


def _place(
    entries: Sequence[Entry], reasons: Mapping[int, str], digests: NDArray[np.uint8], asked: _Asked
) -> list[str]:
    """The split of each entry, "" for those that cannot be used."""
    if asked.as_split:
        return ["" if row in reasons else asked.as_split for row in range(len(entries))]
    placed = ["" if row in reasons else entry.split or "train" for row, entry in enumerate(entries)]
    if "val" in placed:
        return placed
    free = [row for row, part in enumerate(placed) if part == "train" and asked.task in entries[row].labels]
    labels = [entries[row].labels[asked.task] for row in free]
    parts = splitting.by_content([digests[row].tobytes().hex() for row in free], labels, 0.2, asked.seed)
    for row, part in zip(free, parts, strict=True):
        placed[row] = part
    return placed


def _classes(
    data: Path, task: str, entries: Sequence[Entry], placed: Sequence[str], classes: Sequence[str] | None
) -> tuple[str, ...]:
    found: dict[str, set[str]] = {name: set() for name in SPLITS}
    for entry, part in zip(entries, placed, strict=True):
        if part and task in entry.labels:
            found[part].add(entry.labels[task])
    known = set(classes) if classes is not None else found["train"]
    for part, names in found.items():
        strange = sorted(names - known)
        if strange:
            near = find_matches(strange[:1], sorted(known))
            hint = f"did you mean {near[0].suggestion!r}?" if near else "rename it or leave it out"
            owner = "the model" if classes is not None else "the training images"
            raise DataError(
                f"{data}: {part} has the class {strange[0]!r}, which {owner} lack{'s' * (classes is not None)}; {hint}"
            )
    if classes is not None:
        return tuple(classes)
    if len(known) < 2:
        raise DataError(
            f"{data}: {len(known)} class ({', '.join(sorted(known))}), and a classifier needs two; "
            "add images of another"
        )
    return tuple(sorted(known))


def _images(
    pixels: torch.Tensor,
    rows: Sequence[int],
    entries: Sequence[Entry],
    tasks: Sequence[Task],
    preprocessing: Preprocessing,
) -> Images | None:
    if not rows:
        return None
    labels = {}
    for task in tasks:
        place = {name: number for number, name in enumerate(task.classes)}
        found = (place.get(entries[row].labels.get(task.name, ""), -1) for row in rows)
        labels[task.name] = torch.from_numpy(np.fromiter(found, np.int64, len(rows)))
    return Images(pixels, labels, tuple(entries[row].path for row in rows), preprocessing.mean, preprocessing.std)


def _lines(entries: Sequence[Entry], found: _Found) -> Iterator[str]:
    """What a set is told from others by: contents, splits and labels of all that is used."""
    for row, part in enumerate(found.placed):
        if part:
            yield f"{found.digests[row].tobytes().hex()} {part} {sorted(entries[row].labels.items())}"


def _remarks(entries: Sequence[Entry], found: _Found, task: str) -> list[str]:
    """What a careful person would want to know before training."""
    good = np.flatnonzero(np.array(found.placed, dtype=object) != "")
    marks = np.ascontiguousarray(found.digests[good]).view("S32")[:, 0]
    _, first, which = np.unique(marks, return_index=True, return_inverse=True)
    leaks, conflicts = 0, 0
    for copy, original in zip(good.tolist(), good[first[which]].tolist(), strict=True):
        if copy != original:
            leaks += found.placed[original] != found.placed[copy]
            conflicts += entries[original].labels.get(task) != entries[copy].labels.get(task)
    remarks = []
    if leaks:
        remarks.append(f"{leaks} image(s) stand in two splits: validation is flattered by them")
    if conflicts:
        remarks.append(f"{conflicts} image(s) stand in two classes: their labels contradict each other")
    return remarks
