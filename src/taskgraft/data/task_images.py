"""The images of a run: the new task's, and whatever there is of the old ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from taskgraft.data.dataset import open_images
from taskgraft.data.layouts import list_images
from taskgraft.data.splits import Dataset, count_classes
from taskgraft.data.transforms import Preprocessing
from taskgraft.errors import DataError, TaskgraftError
from taskgraft.results.files import shown
from taskgraft.types import Callbacks, Images, Task


class TaskData(NamedTuple):
    """Verified images; `old` is a training sample of old tasks, `old_val` their validation images."""

    new: Dataset
    old: Images | None
    old_val: Images | None
    described: dict[str, Any]  # sources, count_classes, fingerprints, exclusions, for the record


def load_task_data(
    data: Path,
    task: str,
    tasks: Sequence[Task],
    preprocessing: Preprocessing,
    *,
    old: Path | None,
    old_val: Sequence[Path],
    seed: int,
    cache: Path | None,
    callbacks: Callbacks,
    classes: Sequence[str] | None = None,
) -> TaskData:
    """Open the new task's images and those of old `tasks`; which old task a folder is of, its classes tell.

    `classes` are the task's where it is an old one that gets more. Raises TaskgraftError for data that cannot be
    used, or
    classes that no old task has.
    """
    others = [other for other in tasks if other.name != task]
    new = open_images(
        data,
        task,
        preprocessing,
        seed=seed,
        classes=classes,
        others=others,
        cache_folder=cache,
        progress=_bar(callbacks, data),
    )
    if new.train is None or new.val is None:
        raise DataError(
            f"{data}: both training and validation images are needed, and only one of them is there; add the other"
        )
    described = {"new": _describe(data, new)}
    opened: dict[str, list[Images]] = {"train": [], "val": []}
    for part, paths in (("train", [old] if old else []), ("val", old_val)):
        for path in paths:
            owner = match_task(path, tasks)
            found = open_images(
                path, owner.name, preprocessing, seed=seed, classes=owner.classes, cache_folder=cache, as_split=part,
                progress=_bar(callbacks, path),
            )  # fmt: skip
            images = found.train if part == "train" else found.val
            if images is not None:
                opened[part].append(images)
            described[f"old {part}: {owner.name}"] = _describe(path, found)
    return TaskData(new, concat_images(opened["train"]), concat_images(opened["val"]), described)


def read_class_names(path: Path, task: str) -> tuple[str, ...]:
    """The class names that the images at a path have for a task, sorted."""
    return tuple(sorted({e.labels[task] for e in list_images(path, task).entries if task in e.labels}))


def match_task(path: Path, tasks: Sequence[Task]) -> Task:
    """The old task whose classes the images at `path` have."""
    if len(tasks) == 1:
        return tasks[0]
    overlap, reason = {}, None
    for task in tasks:
        try:
            names = {entry.labels.get(task.name) for entry in list_images(path, task.name).entries}
        except TaskgraftError as error:
            reason = error
            continue
        overlap[task] = len(names & set(task.classes)) / max(1, len(names))
    if reason and not overlap:
        raise reason
    if not overlap or max(overlap.values()) == 0:
        raise DataError(
            f"{path}: its classes belong to none of the old tasks {', '.join(task.name for task in tasks)}; "
            "give images of one"
        )
    return max(overlap, key=lambda task: overlap[task])


def concat_images(parts: Sequence[Images]) -> Images | None:
    """Several sets of images as one; a task that a set is not labeled for is -1 there. None for no set."""
    if len(parts) < 2:
        return parts[0] if parts else None
    tasks = {task for part in parts for task in part.labels}
    labels = {
        task: torch.cat([part.labels.get(task, torch.full((len(part.pixels),), -1)) for part in parts])
        for task in sorted(tasks)
    }
    pixels = torch.cat([part.pixels for part in parts])
    return Images(pixels, labels, tuple(n for part in parts for n in part.names), parts[0].mean, parts[0].std)


def _describe(path: Path, found: Dataset) -> dict[str, Any]:
    task = found.tasks[0]
    sets = {"train": found.train, "val": found.val, "test": found.test}
    return {
        "source": shown(str(path)),
        "layout": found.layout,
        "fingerprint": found.fingerprint,
        "task": task.name,
        "classes": len(task.classes),
        "images": {name: len(images.pixels) for name, images in sets.items() if images is not None},
        "counts": count_classes(found.train or found.val, task),
        "excluded": [[shown(where), reason] for where, reason in found.excluded[:1000]],
        "excluded_count": len(found.excluded),
        "notes": list(found.notes),
    }


def _bar(callbacks: Callbacks, path: Path):
    return lambda done, total: callbacks.progress(f"reading {path.name}", done, total)
