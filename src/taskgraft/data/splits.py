"""What a data path becomes: images by split, what was left out, and what to know of them."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from taskgraft.results.files import atomic, shown
from taskgraft.types import Images, Task

SPLITS = ("train", "val", "test")


class Dataset(NamedTuple):
    """Verified images by split; `tasks` in the order asked for; None where there is no such split."""

    tasks: tuple[Task, ...]
    train: Images | None
    val: Images | None
    test: Images | None
    excluded: tuple[tuple[str, str], ...]
    layout: str
    fingerprint: str  # over contents, labels and splits
    decoded: int
    notes: tuple[str, ...]

    def splits(self) -> Iterator[tuple[str, str]]:
        """Path and split of every image that is used."""
        for name in SPLITS:
            images = getattr(self, name)
            yield from ((path, name) for path in (images.names if images else ()))


def count_classes(images: Images | None, task: Task) -> dict[str, int]:
    """How many images each class has."""
    if images is None:
        return {}
    target = images.labels[task.name]
    found = torch.bincount(target[target >= 0], minlength=len(task.classes)).tolist()
    return dict(zip(task.classes, found, strict=True))


def write_split_lists(folder: Path, found: Dataset) -> None:
    """Write `excluded.csv` and `split.csv` into a run folder."""
    _write(folder / "excluded.csv", ("path", "reason"), found.excluded)
    _write(folder / "split.csv", ("path", "split"), found.splits())


def describe_changes(folder: Path, found: Dataset) -> str:
    """How the images of a run folder's lists and those found now differ, by name where names differ."""
    try:
        with (folder / "split.csv").open(encoding="utf-8", newline="") as file:
            before = {path for path, _ in list(csv.reader(file))[1:]}
    except (OSError, ValueError, csv.Error):
        return "other images"
    now = {shown(path) for path, _ in found.splits()}
    parts = [(word, sorted(names)) for word, names in (("added", now - before), ("gone", before - now)) if names]
    told = [f"{word} {', '.join(names[:3])}{f' and {len(names) - 3} more' * (len(names) > 3)}" for word, names in parts]
    return "; ".join(told) or "the same names, but other contents, labels or splits"


def _write(path: Path, header: tuple[str, str], rows: Iterable[tuple[str, str]]) -> None:
    with atomic(path) as aside, aside.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows((shown(path), word) for path, word in rows)
