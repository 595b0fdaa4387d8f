"""Images to compare an export on: those the user gives, those of the model's record, or synthetic ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from taskgraft import seeding
from taskgraft.bundle import Bundle
from taskgraft.data import open_images, pixel_cache
from taskgraft.data.layouts import list_images
from taskgraft.data.task_images import concat_images, match_task
from taskgraft.errors import DataError
from taskgraft.exports.signature import read_record
from taskgraft.results.record import Record
from taskgraft.types import Callbacks, Images, Task

CALIBRATION_IMAGES = 256  # on which int8-static measures the range of every layer
SYNTHETIC_IMAGES = 64


class SampleImages(NamedTuple):
    """Images to compare on, labeled where possible, and others to calibrate int8-static on."""

    images: Images
    calibration: Images | None
    sources: tuple[str, ...]
    notes: tuple[str, ...]
    synthetic: bool


class _Source(NamedTuple):
    path: Path
    task: Task
    seed: int = 0


def collect_images(
    bundle: Bundle, paths: Sequence[Path], *, calibrate: bool, cache: Path | None, callbacks: Callbacks
) -> SampleImages:
    """Collect validation images of every task.

    Args:
        bundle: the model.
        paths: labeled images; empty = those that the model's record names.
        calibrate: also collect images to calibrate int8-static on, preferably training images.
        cache: folder of the pixel cache.
        callbacks: progress of reading.

    Raises:
        DataError: images that cannot be used.
    """
    tasks, record, notes = bundle.classifier.tasks, read_record(bundle), []
    sources = [_Source(path, match_task(path, tasks)) for path in paths]
    if not sources and record is not None:
        sources = _recorded_sources(record, tasks, notes)
    if not sources:
        notes.append(
            "WARNING: no real images (no --check DATA, and no images of the model's record still exist): "
            f"comparing on {SYNTHETIC_IMAGES} synthetic images, which says little about real ones"
        )
        synthetic = synthetic_images(bundle)
        return SampleImages(synthetic, synthetic if calibrate else None, (), tuple(notes), True)
    images = concat_images([found for source in sources if (found := _open(bundle, record, source, cache, callbacks))])
    if images is None:
        raise DataError(f"{sources[0].path} contains no images to compare on")
    labeled = {source.task.name for source in sources}
    notes += [f"{task.name}: no labeled images; comparing predictions" for task in tasks if task.name not in labeled]
    calibration = None
    if calibrate:
        calibration = concat_images([found for source in sources if (found := _training_sample(bundle, source))])
        if calibration is not None:
            notes.append(f"calibrating int8 on {len(calibration.pixels)} training images")
        else:
            images, calibration = _hold_out(images)
            count = len(calibration.pixels)
            notes.append(f"no training images: calibrating int8 on {count} of the images, comparing on the rest")
    return SampleImages(images, calibration, tuple(str(source.path) for source in sources), tuple(notes), False)


def synthetic_images(bundle: Bundle) -> Images:
    """Coarse colored patches with noise, [64, S, S, 3] uint8, the same every time."""
    size, rng = bundle.preprocessing.size, seeding.generator(0, "synthetic")
    cells = rng.integers(0, 256, (SYNTHETIC_IMAGES, 6, 6, 3))
    index = np.arange(size) * 6 // size
    pixels = cells[:, index][:, :, index] + rng.normal(0, 20, (SYNTHETIC_IMAGES, size, size, 3))
    names = tuple(f"synthetic {number}" for number in range(SYNTHETIC_IMAGES))
    stored = torch.from_numpy(pixels.clip(0, 255).astype(np.uint8))
    return Images(stored, {}, names, bundle.preprocessing.mean, bundle.preprocessing.std)


def _recorded_sources(record: Record, tasks: Sequence[Task], notes: list[str]) -> list[_Source]:
    """The validation images that the record names and that still exist."""
    task_by_name = {task.name: task for task in tasks}
    sources = []
    for name, part in record.data.items():
        path, task = Path(str(part.get("source"))), task_by_name.get(str(part.get("task")))
        if name.startswith("old train") or task is None:
            continue
        if path.exists():
            sources.append(_Source(path, task, record.seed))
        else:
            notes.append(f"{path}: these images of {task.name} are in the record, but no longer exist")
    return sources


def _open(
    bundle: Bundle, record: Record | None, source: _Source, cache: Path | None, callbacks: Callbacks
) -> Images | None:
    """The validation split of the data or of the training run; else all images."""
    splits = {entry.split for entry in list_images(source.path, source.task.name).entries}
    was_split = record is not None and Path(str(record.data.get("new", {}).get("source"))) == source.path
    return open_images(
        source.path, source.task.name, bundle.preprocessing, seed=source.seed, classes=source.task.classes,
        others=[task for task in bundle.classifier.tasks if task != source.task], cache_folder=cache,
        as_split="val" if "val" in splits or not was_split else None,
        progress=lambda done, total: callbacks.progress(f"reading {source.path.name}", done, total),
    ).val  # fmt: skip


def _training_sample(bundle: Bundle, source: _Source) -> Images | None:
    """Up to 256 training images, evenly spread over the list, without labels."""
    listing = list_images(source.path, source.task.name)
    paths = [entry.path for entry in listing.entries if entry.split == "train"]
    if not paths:
        return None
    spread = np.linspace(0, len(paths) - 1, min(CALIBRATION_IMAGES, len(paths))).round().astype(int)
    chosen = [paths[row] for row in spread]
    found = pixel_cache.load_pixels(listing.root, chosen, bundle.preprocessing, None)
    names = tuple(str(listing.root / path) for row, path in enumerate(chosen) if row not in found.reasons)
    return Images(found.pixels, {}, names, bundle.preprocessing.mean, bundle.preprocessing.std) if names else None


def _hold_out(images: Images) -> tuple[Images, Images]:
    """Split images into those to compare on and, evenly spread, up to a quarter of them to calibrate on."""
    total = len(images.pixels)
    count = min(CALIBRATION_IMAGES, max(1, total // 4))
    chosen = set(torch.linspace(0, total - 1, count).long().tolist())
    return _select(images, [row for row in range(total) if row not in chosen]), _select(images, sorted(chosen))


def _select(images: Images, rows: Sequence[int]) -> Images:
    index = torch.tensor(rows)
    labels = {task: target[index] for task, target in images.labels.items()}
    return images._replace(pixels=images.pixels[index], labels=labels, names=tuple(images.names[row] for row in rows))
