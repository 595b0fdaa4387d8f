"""A whole data set as it was found the last time, in columns that are mapped: what a second start needs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from taskgraft.data import decode, image_store, packed_names, pixel_cache
from taskgraft.data.splits import SPLITS, Dataset
from taskgraft.data.transforms import Preprocessing
from taskgraft.results.files import fingerprint
from taskgraft.types import Images, Task

FORMAT = "1"  # raise it when the same images give another set, or the columns change


def place_of(folder: Path, data: Path, preprocessing: Preprocessing, asked: Sequence[Any]) -> Path:
    """Where the set is kept that a data path gives under these settings; a newer state replaces an older one."""
    parts = [FORMAT, decode.VERSION, str(data.resolve()), preprocessing.to_text(), *map(repr, asked)]
    return folder / "sets" / f"{fingerprint(parts)[:32]}.safetensors"


def save(place: Path, state: str, found: Dataset, key: str) -> None:
    """Keep a set whose pixels lie in the cache under `key`, one split after another."""
    table: dict[str, Tensor] = {}
    sizes = {}
    for name in SPLITS:
        images = getattr(found, name)
        if images is not None:
            names = packed_names.pack(images.names)
            sizes[name] = len(names)
            table |= {f"{name}.text": names.text, f"{name}.ends": names.ends}
            table |= {f"{name}.label.{at}": images.labels[task.name] for at, task in enumerate(found.tasks)}
    about = {
        "state": state,
        "key": key,
        "sizes": sizes,
        "tasks": found.tasks,
        "excluded": found.excluded,
        "layout": found.layout,
        "fingerprint": found.fingerprint,
        "notes": found.notes,
    }
    packed_names.save(place, table, about)


def load(place: Path, state: str, folder: Path, preprocessing: Preprocessing) -> Dataset | None:
    """The set, if nothing has changed since and its pixels are still there."""
    kept = packed_names.load(place)
    if kept is None or kept[1]["state"] != state:
        return None
    table, about = kept
    total = sum(about["sizes"].values())
    pixels = image_store.open_file(
        pixel_cache.geometry_folder(folder, preprocessing), about["key"], total, preprocessing.size
    )
    if pixels is None:
        return None
    tasks = tuple(Task(name, tuple(classes)) for name, classes in about["tasks"])
    sets: dict[str, Images | None] = dict.fromkeys(SPLITS)
    start = 0
    for name, count in about["sizes"].items():
        labels = {task.name: table[f"{name}.label.{at}"] for at, task in enumerate(tasks)}
        names = packed_names.Names(table[f"{name}.text"], table[f"{name}.ends"])
        if name != "train":  # every answer to them is stored with its name
            names = tuple(names)
        sets[name] = Images(pixels[start : start + count], labels, names, preprocessing.mean, preprocessing.std)
        start += count
    excluded = tuple((path, reason) for path, reason in about["excluded"])
    return Dataset(
        tasks, sets["train"], sets["val"], sets["test"], excluded, about["layout"], about["fingerprint"], 0,
        tuple(about["notes"]),
    )  # fmt: skip
