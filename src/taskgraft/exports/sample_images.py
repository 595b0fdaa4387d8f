"""The images that an export is checked on: given, or those of the model's own record, or synthetic ones."""

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
from taskgraft.errors import InputError
from taskgraft.results.record import Record, parsed
from taskgraft.types import Callbacks, Images, Task

CALIBRATION = 256  # images on which int8-static measures the range of every layer
SYNTHETIC = 64


class Shown(NamedTuple):
    """Images with labels where known; `calibration` are others, none of which is measured on."""

    images: Images
    calibration: Images | None
    sources: tuple[str, ...]
    notes: tuple[str, ...]
    synthetic: bool


class _Source(NamedTuple):
    path: Path
    task: Task
    seed: int


def gather(
    bundle: Bundle, given: Sequence[Path], *, calibrate: bool, cache: Path | None, callbacks: Callbacks
) -> Shown:
    """Open the validation part of every source. Raises TaskgraftError for images that cannot be used."""
    notes: list[str] = []
    tasks = bundle.classifier.tasks
    found = [_Source(path, match_task(path, tasks), 0) for path in given] or _recorded(bundle, notes)
    if not found:
        notes.append(
            "WARNING: no real image is at hand (no --check DATA, and the record names none that still exists): "
            f"the export is compared on {SYNTHETIC} synthetic images, which says little of real ones"
        )
        return Shown(synthetic(bundle), synthetic(bundle) if calibrate else None, (), tuple(notes), True)
    parts = [images for source in found if (images := _open(bundle, source, cache, callbacks)) is not None]
    images = concat_images(parts)
    if images is None:
        raise InputError(f"{found[0].path} holds no image to compare on; add some")
    covered = {source.task.name for source in found}
    notes += [f"{task.name}: no labeled images; answers are compared" for task in tasks if task.name not in covered]
    calibration = None
    if calibrate:
        images, calibration, note = _calibration(bundle, found, images)
        notes.append(note)
    return Shown(images, calibration, tuple(str(source.path) for source in found), tuple(notes), False)


def _recorded(bundle: Bundle, notes: list[str]) -> list[_Source]:
    """The sources of the model's own validation images that still exist."""
    file = bundle.home / "record.json" if bundle.home else None
    if file is None or not file.is_file():
        return []
    record = parsed(Record, file)
    tasks = {task.name: task for task in bundle.classifier.tasks}
    found = []
    for name, part in record.data.items():
        path, task = Path(str(part.get("source"))), tasks.get(str(part.get("task")))
        if name.startswith("old train") or task is None:
            continue
        if not path.exists():
            notes.append(f"{path}: the record names these images of {task.name}, but they are not there")
            continue
        found.append(_Source(path, task, record.seed))
    return found


def _open(bundle: Bundle, source: _Source, folder: Path | None, callbacks: Callbacks) -> Images | None:
    """The validation part: the one that the data has, or the one that training split off; else everything."""
    splits = {entry.split for entry in list_images(source.path, source.task.name).entries}
    whole = "val" if "val" in splits or not _was_split(bundle, source) else None
    return open_images(
        source.path, source.task.name, bundle.preprocessing, seed=source.seed, classes=source.task.classes,
        others=[task for task in bundle.classifier.tasks if task != source.task], cache_folder=folder, as_split=whole,
        progress=lambda done, total: callbacks.progress(f"reading {source.path.name}", done, total),
    ).val  # fmt: skip


def _was_split(bundle: Bundle, source: _Source) -> bool:
    """Whether training took its validation images from this very source."""
    file = bundle.home / "record.json" if bundle.home else None
    if file is None or not file.is_file():
        return False
    record = parsed(Record, file)
    return Path(str(record.data.get("new", {}).get("source"))) == source.path


def _calibration(bundle: Bundle, found: Sequence[_Source], images: Images) -> tuple[Images, Images, str]:
    """What is measured on, other images to calibrate on, and where those come from."""
    parts = [part for source in found if (part := _training(bundle, source)) is not None]
    if parts:
        whole = concat_images(parts)
        assert whole is not None
        return images, whole, f"int8 ranges are measured on {len(whole.pixels)} training images"
    total = len(images.pixels)
    chosen = set(torch.linspace(0, total - 1, min(CALIBRATION, max(1, total // 4))).long().tolist())
    rest = _rows(images, [row for row in range(total) if row not in chosen])
    note = f"no training images: int8 ranges are measured on {len(chosen)} of the images, the rest is compared on"
    return rest, _rows(images, sorted(chosen)), note


def _training(bundle: Bundle, source: _Source) -> Images | None:
    """A sample of a source's training images, evenly spread over its list; labels are not needed."""
    listing = list_images(source.path, source.task.name)
    paths = [entry.path for entry in listing.entries if entry.split == "train"]
    if not paths:
        return None
    spread = np.linspace(0, len(paths) - 1, min(CALIBRATION, len(paths))).round().astype(int)
    chosen = [paths[row] for row in spread]
    found = pixel_cache.load_pixels(listing.root, chosen, bundle.preprocessing, None)
    names = tuple(str(listing.root / path) for row, path in enumerate(chosen) if row not in found.reasons)
    return Images(found.pixels, {}, names, bundle.preprocessing.mean, bundle.preprocessing.std) if names else None


def _rows(images: Images, rows: Sequence[int]) -> Images:
    index = torch.tensor(rows)
    labels = {task: target[index] for task, target in images.labels.items()}
    return images._replace(pixels=images.pixels[index], labels=labels, names=tuple(images.names[row] for row in rows))


def synthetic(bundle: Bundle) -> Images:
    """Coarse coloured patches with noise; [SYNTHETIC, S, S, 3] uint8, the same every time."""
    size, rng = bundle.preprocessing.size, seeding.generator(0, "synthetic")
    cells = rng.integers(0, 256, (SYNTHETIC, 6, 6, 3))
    place = np.arange(size) * 6 // size
    pixels = cells[:, place][:, :, place] + rng.normal(0, 20, (SYNTHETIC, size, size, 3))
    names = tuple(f"synthetic {number}" for number in range(SYNTHETIC))
    stored = torch.from_numpy(pixels.clip(0, 255).astype(np.uint8))
    return Images(stored, {}, names, bundle.preprocessing.mean, bundle.preprocessing.std)
