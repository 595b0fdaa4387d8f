"""A data path -> verified sets of images, with what was excluded and why."""

from __future__ import annotations

import csv
import difflib
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from taskgraft.data import cache, split
from taskgraft.data.formats import Entry, Listing, list_images
from taskgraft.data.preprocess import Preprocess
from taskgraft.problem import Problem
from taskgraft.record import fingerprint, write_text
from taskgraft.types import Images, Task

MAX_EXCLUDED = 0.05  # more than this share unreadable is a broken copy, not a few bad files


class DataSet(NamedTuple):
    """Verified images by split; `tasks` in the order asked for; None where there is no such split."""

    tasks: tuple[Task, ...]
    train: Images | None
    val: Images | None
    test: Images | None
    excluded: tuple[tuple[str, str], ...]
    splits: tuple[tuple[str, str], ...]  # path, split of every image that is used
    kind: str
    fingerprint: str  # over contents, labels and splits
    decoded: int
    notes: tuple[str, ...]


def open_images(
    data: Path,
    task: str,
    wanted: Preprocess,
    *,
    seed: int,
    classes: Sequence[str] | None = None,
    others: Sequence[Task] = (),
    cache_folder: Path | None = None,
    whole: str | None = None,
    progress: cache.Progress | None = None,
) -> DataSet:
    """List, decode, check and split the pictures at `data`.

    `classes` fixes the classes of `task` (an old one); without it they are those of the training pictures,
    sorted. `others` are further tasks whose columns a table may have. `whole="val"` takes a split of that name
    where there is one and all pictures otherwise, without splitting. Raises Problem for anything that cannot be
    understood, fewer than two classes, classes that differ between splits, or too many unreadable pictures.
    """
    listing = list_images(data, task, tuple(other.name for other in others))
    entries = _chosen(listing, whole)
    files = [listing.root / entry.path for entry in entries]
    pixels = cache.load(files, wanted, cache_folder, progress)
    good = [row for row, reason in enumerate(pixels.reasons) if reason is None]
    bad = [(entries[row].path, reason) for row, reason in enumerate(pixels.reasons) if reason]
    if len(bad) > MAX_EXCLUDED * len(entries):
        raise Problem(
            f"{data}: {len(bad)} of {len(entries)} pictures cannot be used, first {bad[0][0]!r} ({bad[0][1]}); "
            f"mend or remove them (at most {MAX_EXCLUDED:.0%} are passed over)"
        )
    placed = _place(entries, good, pixels.digests, task, seed, whole)
    own = _classes(data, task, entries, placed, classes)
    tasks = (Task(task, own), *(other for other in others if any(other.name in e.labels for e in entries)))
    rows = {name: [row for row in good if placed[row] == name] for name in ("train", "val", "test")}
    names = tuple(entry.path for entry in entries)
    sets = {name: _images(pixels.pixels, chosen, entries, names, tasks, wanted) for name, chosen in rows.items()}
    print_of = fingerprint(f"{pixels.digests[row]} {placed[row]} {sorted(entries[row].labels.items())}" for row in good)
    return DataSet(
        tasks,
        sets["train"],
        sets["val"],
        sets["test"],
        (*listing.skipped, *bad),
        tuple((names[row], placed[row]) for row in good),
        listing.kind,
        print_of,
        pixels.decoded,
        tuple(_remarks(entries, good, placed, pixels.digests, task)),
    )


def counts(images: Images | None, task: Task) -> dict[str, int]:
    """How many images each class has."""
    if images is None:
        return {}
    found = Counter(images.labels[task.name].tolist())
    return {name: found[row] for row, name in enumerate(task.classes)}


def write_lists(folder: Path, found: DataSet) -> None:
    """Write `excluded.csv` and `split.csv` into a run folder."""
    for name, header, rows in (
        ("excluded.csv", ("path", "reason"), found.excluded),
        ("split.csv", ("path", "split"), found.splits),
    ):
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([header, *rows])
        write_text(folder / name, text.getvalue())


def _chosen(listing: Listing, whole: str | None) -> tuple[Entry, ...]:
    if whole is None or not any(entry.split == whole for entry in listing.entries):
        return listing.entries
    return tuple(entry for entry in listing.entries if entry.split == whole)


def _place(
    entries: Sequence[Entry],
    good: Sequence[int],
    digests: Sequence[str],
    task: str,
    seed: int,
    whole: str | None,
) -> dict[int, str]:
    """Row -> split, for the rows that can be used."""
    if whole:
        return dict.fromkeys(good, whole)
    given = {row: entries[row].split for row in good}
    if "val" in given.values():
        return {row: name or "train" for row, name in given.items()}
    free = [row for row in good if given[row] in (None, "train") and task in entries[row].labels]
    labels = [entries[row].labels[task] for row in free]
    parts = split.by_content([digests[row] for row in free], labels, 0.2, seed)
    rest = {row: name or "train" for row, name in given.items()}
    return rest | dict(zip(free, parts, strict=True))


def _classes(
    data: Path, task: str, entries: Sequence[Entry], placed: dict[int, str], classes: Sequence[str] | None
) -> tuple[str, ...]:
    found: dict[str, set[str]] = {"train": set(), "val": set(), "test": set()}
    for row, part in placed.items():
        if task in entries[row].labels:
            found[part].add(entries[row].labels[task])
    known = set(classes) if classes is not None else found["train"]
    for part, names in found.items():
        strange = sorted(names - known)
        if strange:
            near = difflib.get_close_matches(strange[0], sorted(known), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            owner = "the model" if classes is not None else "the training pictures"
            raise Problem(
                f"{data}: {part} has the class {strange[0]!r}, which {owner} lack{'s' * (classes is not None)}{hint}"
            )
    if classes is not None:
        return tuple(classes)
    if len(known) < 2:
        raise Problem(f"{data}: {len(known)} class ({', '.join(sorted(known))}); a classifier needs at least two")
    return tuple(sorted(known))


def _images(
    pixels: torch.Tensor,
    rows: Sequence[int],
    entries: Sequence[Entry],
    names: tuple[str, ...],
    tasks: Sequence[Task],
    wanted: Preprocess,
) -> Images | None:
    if not rows:
        return None
    labels = {}
    for task in tasks:
        place = {name: number for number, name in enumerate(task.classes)}
        labels[task.name] = torch.tensor([place.get(entries[row].labels.get(task.name, ""), -1) for row in rows])
    consecutive = list(rows) == list(range(rows[0], rows[-1] + 1))
    chosen = pixels[rows[0] : rows[-1] + 1] if consecutive else pixels[torch.tensor(rows)]
    return Images(chosen, labels, tuple(names[row] for row in rows), wanted.mean, wanted.std)


def _remarks(
    entries: Sequence[Entry], good: Sequence[int], placed: dict[int, str], digests: Sequence[str], task: str
) -> list[str]:
    """What a careful person would want to know before training."""
    seen: dict[str, int] = {}
    leaks, conflicts = 0, 0
    for row in good:
        first = seen.setdefault(digests[row], row)
        if first != row:
            leaks += placed[first] != placed[row]
            conflicts += entries[first].labels.get(task) != entries[row].labels.get(task)
    remarks = []
    if leaks:
        remarks.append(f"{leaks} picture(s) stand in two splits: validation is flattered by them")
    if conflicts:
        remarks.append(f"{conflicts} picture(s) stand in two classes: their labels contradict each other")
    return remarks
