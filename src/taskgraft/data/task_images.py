"""The images of a run: those of the new task, and those of old tasks that are available."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from taskgraft.data.dataset import SPLITS, Dataset, count_classes, open_images
from taskgraft.data.labeled_images import ImageSource, list_source
from taskgraft.data.transforms import Preprocessing
from taskgraft.errors import DataError
from taskgraft.results.files import escape_surrogates
from taskgraft.types import Callbacks, Images, Task

MAX_LISTED = 1000  # excluded images that the record names


class TaskData(NamedTuple):
    """Verified images of a run.

    Attributes:
        new: the new task's dataset, with training and validation images.
        old: a training sample of old tasks, or None.
        old_val: validation images of old tasks, or None.
        described: sources, counts, fingerprints and exclusions, for the record.
    """

    new: Dataset
    old: Images | None
    old_val: Images | None
    described: dict[str, Any]


def load_task_data(
    data: ImageSource,
    task: str,
    tasks: Sequence[Task],
    preprocessing: Preprocessing,
    *,
    old: ImageSource | None,
    old_val: Sequence[ImageSource],
    seed: int,
    cache: Path | None,
    callbacks: Callbacks,
    classes: Sequence[str] | None = None,
    find_bits: bool = False,
) -> TaskData:
    """Load the images of the new task and of old tasks.

    Args:
        data: data path of the new task, or its images in memory; the same for the other images.
        task: its name.
        tasks: the tasks of the parent; the class names at a path decide which of them it belongs to.
        preprocessing: the model's.
        old: training images of an old task, or None.
        old_val: validation images of old tasks.
        seed: decides the validation images that are split off.
        cache: cache folder, or None.
        callbacks: progress.
        classes: class names of `task`, where it exists already and gets more images.
        find_bits: find how many bits 16-bit files of the new task use, where the preprocessing does not say; the old
            tasks' files are then read alike.

    Raises:
        DataError: images cannot be used, or belong to no old task.
    """

    def open_(path: ImageSource, task: str, classes: Sequence[str] | None, **options: Any) -> Dataset:
        progress = partial(callbacks.progress, f"reading {path.name}")
        dataset = open_images(
            path, task, preprocessing, seed=seed, classes=classes, cache_folder=cache, progress=progress, **options
        )
        for line in describe_exclusions(dataset):
            callbacks.info(f"{escape_surrogates(path.name)}: {line}")
        return dataset

    others = [other for other in tasks if other.name != task]
    new = open_(data, task, classes, others=others, find_bits=find_bits)
    preprocessing = preprocessing._replace(bits=new.bits)
    if new.train is None or new.val is None:
        missing = "training" if new.train is None else "validation"
        raise DataError(f"{data}: there are no {missing} images; add some")
    described = {"new": describe_dataset(data, new)}
    old_images: dict[str, list[Images]] = {"train": [], "val": []}
    for split, path in [*(("train", path) for path in [old] if path), *(("val", path) for path in old_val)]:
        owner = match_task(path, tasks)
        dataset = open_(path, owner.name, owner.classes, as_split=split)
        images = dataset.train if split == "train" else dataset.val
        if images is not None:
            old_images[split].append(images)
        described[f"old {split}: {owner.name}"] = describe_dataset(path, dataset)
    return TaskData(new, concat_images(old_images["train"]), concat_images(old_images["val"]), described)


def read_class_names(path: ImageSource, task: str) -> tuple[str, ...]:
    """List the class names that the images at a path have for a task, sorted."""
    return tuple(sorted({entry.labels[task] for entry in list_source(path, task).entries if task in entry.labels}))


def match_task(path: ImageSource, tasks: Sequence[Task]) -> Task:
    """Find the task whose class names the images at a path have.

    Raises:
        DataError: the path cannot be read, or its classes belong to no task.
    """
    if len(tasks) == 1:
        return tasks[0]
    if not tasks:
        raise DataError(f"{path}: there is no other task that these images could belong to; leave them out")
    overlap: dict[Task, float] = {}
    failure = None
    for task in tasks:
        try:
            names = {entry.labels.get(task.name) for entry in list_source(path, task.name).entries}
        except DataError as error:  # a table may have a column for some tasks alone
            failure = error
            continue
        overlap[task] = len(names & set(task.classes)) / max(1, len(names))
    if failure and not overlap:
        raise failure
    if not any(overlap.values()):
        names = ", ".join(task.name for task in tasks)
        raise DataError(f"{path}: its classes are of none of the tasks {names}; give labeled images of one of them")
    return max(overlap, key=lambda task: overlap[task])


def concat_images(sets: Sequence[Images]) -> Images | None:
    """Concatenate sets of images; labels are -1 where a set has none for a task. None for no set."""
    if len(sets) < 2:
        return sets[0] if sets else None
    labels = {
        task: torch.cat([images.labels.get(task, torch.full((len(images.pixels),), -1)) for images in sets])
        for task in sorted({task for images in sets for task in images.labels})
    }
    names = tuple(name for images in sets for name in images.names)
    return Images(torch.cat([images.pixels for images in sets]), labels, names, sets[0].mean, sets[0].std)


def describe_exclusions(dataset: Dataset) -> list[str]:
    """Describe in a few lines what was left out of a dataset and what was assumed of it."""
    lines = list(dataset.notes)
    if dataset.excluded:
        path, reason = dataset.excluded[0]
        lines.append(f"{len(dataset.excluded)} file(s) left out, first {escape_surrogates(path)!r} ({reason})")
    return lines


def describe_dataset(path: ImageSource, dataset: Dataset) -> dict[str, Any]:
    """Describe a dataset for the record: source, counts, fingerprint and what was excluded."""
    task = dataset.tasks[0]
    sets: dict[str, Images | None] = {split: getattr(dataset, split) for split in SPLITS}
    return {
        "source": escape_surrogates(str(path)),
        "layout": dataset.layout,
        "fingerprint": dataset.fingerprint,
        "task": task.name,
        "classes": len(task.classes),
        "images": {split: len(images.pixels) for split, images in sets.items() if images is not None},
        "counts": count_classes(dataset.train or dataset.val, task),
        "excluded": [[escape_surrogates(name), reason] for name, reason in dataset.excluded[:MAX_LISTED]],
        "excluded_count": len(dataset.excluded),
        "notes": list(dataset.notes),
    }
