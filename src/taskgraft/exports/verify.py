"""Comparison of an exported file with the model it came from, on real images where there are any."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from taskgraft import data, metrics, seeding
from taskgraft.bundle import Bundle
from taskgraft.data import open_images, pixel_cache
from taskgraft.data.layouts import list_images
from taskgraft.data.task_images import concat_images, match_task
from taskgraft.errors import DataError
from taskgraft.exports.signature import Runner, read_record
from taskgraft.models.classifier import Classifier
from taskgraft.models.inference import predict
from taskgraft.results.predictions import Predictions
from taskgraft.results.record import Record
from taskgraft.types import Callbacks, Images, Task

TOLERANCE = 1e-3  # maximum difference of a logit, relative to the largest logit
MAX_ACCURACY_LOSS = 0.01  # of int8
FIRST_BATCHES = (1, 2, 7)  # a batch dimension that is not free fails here
BATCH = 32
CALIBRATION_IMAGES = 256  # on which int8-static measures the range of every layer
SYNTHETIC_IMAGES = 64


class SampleImages(NamedTuple):
    """Images to compare on, labeled where possible, and others to calibrate int8-static on; no sources = synthetic."""

    images: Images
    calibration: Images | None
    sources: tuple[Path, ...]
    notes: tuple[str, ...]


class TaskCheck(BaseModel):
    """An export compared with the model on one task.

    Attributes:
        task: name of the task.
        images: number of images.
        difference: maximum absolute difference of a logit.
        relative: the same relative to the largest logit.
        agreement: fraction of images with the same prediction.
        labeled: number of labeled images.
        accuracy: accuracy of the model; None without labeled images.
        exported: accuracy of the export; None without labeled images.
    """

    model_config = ConfigDict(frozen=True)
    task: str
    images: int
    difference: float
    relative: float
    agreement: float
    labeled: int = 0
    accuracy: float | None = None
    exported: float | None = None


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
    sources = [(path, match_task(path, tasks)) for path in paths]
    if not sources and record is not None:
        sources = _recorded_sources(record, tasks, notes)
    if not sources:
        notes.append(
            "WARNING: no real images (no --check DATA, and no images of the model's record still exist): "
            f"comparing on {SYNTHETIC_IMAGES} synthetic images, which says little about real ones"
        )
        images = synthetic_images(bundle)
        return SampleImages(images, images if calibrate else None, (), tuple(notes))
    seed = record.seed if record is not None and not paths else 0
    opened = [_open(bundle, record, path, task, seed, cache, callbacks) for path, task in sources]
    images = concat_images([images for images in opened if images is not None])
    if images is None:
        raise DataError(f"{sources[0][0]} contains no images to compare on")
    labeled = {task.name for _, task in sources}
    notes += [f"{task.name}: no labeled images; comparing predictions" for task in tasks if task.name not in labeled]
    calibration = None
    if calibrate:
        samples = [_sample_training_images(bundle, path, task) for path, task in sources]
        calibration = concat_images([sample for sample in samples if sample is not None])
        if calibration is not None:
            notes.append(f"calibrating int8 on {len(calibration.pixels)} training images")
        else:
            images, calibration = _hold_out(images)
            count = len(calibration.pixels)
            notes.append(f"no training images: calibrating int8 on {count} of the images, comparing on the rest")
    return SampleImages(images, calibration, tuple(path for path, _ in sources), tuple(notes))


def synthetic_images(bundle: Bundle) -> Images:
    """Coarse colored or gray patches with noise, [64, S, S, C] uint8, the same every time."""
    size, channels = bundle.preprocessing.size, bundle.preprocessing.channels
    rng = seeding.generator(0, "synthetic")
    cells = rng.integers(0, 256, (SYNTHETIC_IMAGES, 6, 6, channels))
    index = np.arange(size) * 6 // size
    noisy = cells[:, index][:, :, index] + rng.normal(0, 20, (SYNTHETIC_IMAGES, size, size, channels))
    pixels = torch.from_numpy(noisy.clip(0, 255).astype(np.uint8))
    names = tuple(f"synthetic {number}" for number in range(SYNTHETIC_IMAGES))
    return Images(pixels, {}, names, bundle.preprocessing.mean, bundle.preprocessing.std)


def prepare_inputs(images: Images, start: int, stop: int, *, uint8: bool) -> NDArray[Any]:
    """The input of an exported file: pixels [B, S, S, C] uint8, or normalized images [B, C, S, S] float32."""
    batch = images.pixels[start:stop] if uint8 else data.normalize(images, start, stop)
    return np.ascontiguousarray(batch.numpy())


def compare(classifier: Classifier, images: Images, run: Runner, *, uint8: bool) -> tuple[TaskCheck, ...]:
    """Run an export on all images, in batches of 1, 2, 7, then 32, and compare it with the model."""
    model = predict(classifier, images)
    batches = [run(prepare_inputs(images, *bounds, uint8=uint8)) for bounds in _batch_bounds(len(images.pixels))]
    logits = map(np.concatenate, zip(*batches, strict=True))
    exported = model._replace(logits=dict(zip(model.logits, logits, strict=True)))
    return tuple(_compare_task(task, model, exported) for task in model.classes)


def find_unacceptable(checks: tuple[TaskCheck, ...], precision: str) -> str | None:
    """Describe the first unacceptable difference.

    In fp32 a logit may differ by `TOLERANCE`, and all predictions must be equal. An int8 export may lose
    `MAX_ACCURACY_LOSS` of accuracy, or without labeled images change that fraction of the predictions.
    """
    for check in checks:
        changed = f"{1 - check.agreement:.2%} of the predictions change"
        if not np.isfinite(check.difference):
            return f"{check.task}: the exported file returns non-finite values"
        if precision == "fp32":
            if check.relative > TOLERANCE:
                return f"{check.task}: logits differ by {check.relative:.1e} of their scale (limit {TOLERANCE:.0e})"
            if check.agreement < 1:
                return f"{check.task}: {changed}"
        elif check.accuracy is not None and check.exported is not None:
            if check.accuracy - check.exported > MAX_ACCURACY_LOSS:
                return f"{check.task}: accuracy drops from {check.accuracy:.2%} to {check.exported:.2%}"
        elif check.agreement < 1 - MAX_ACCURACY_LOSS:
            return f"{check.task}: {changed}, and there are no labeled images"
    return None


def format_check(check: TaskCheck) -> str:
    """A comparison as one line."""
    text = (
        f"{check.task}: same prediction on {check.agreement:.2%} of {check.images} images, "
        f"maximum difference {check.difference:.1e} ({check.relative:.1e} of the logits' scale)"
    )
    if check.accuracy is None or check.exported is None:
        return text
    return f"{text}; accuracy {check.accuracy:.2%} → {check.exported:.2%} on {check.labeled} labeled images"


def _recorded_sources(record: Record, tasks: Sequence[Task], notes: list[str]) -> list[tuple[Path, Task]]:
    """The validation images that the record names and that still exist."""
    task_by_name = {task.name: task for task in tasks}
    sources = []
    for name, entry in record.data.items():
        path, task = Path(str(entry.get("source"))), task_by_name.get(str(entry.get("task")))
        if name.startswith("old train") or task is None:
            continue
        if path.exists():
            sources.append((path, task))
        else:
            notes.append(f"{path}: these images of {task.name} are in the record, but no longer exist")
    return sources


def _open(
    bundle: Bundle, record: Record | None, path: Path, task: Task, seed: int, cache: Path | None, callbacks: Callbacks
) -> Images | None:
    """The validation split of the data or of the training run; else all images."""
    splits = {entry.split for entry in list_images(path, task.name).entries}
    was_split = record is not None and Path(str(record.data.get("new", {}).get("source"))) == path
    return open_images(
        path, task.name, bundle.preprocessing, seed=seed, classes=task.classes,
        others=[other for other in bundle.classifier.tasks if other != task], cache_folder=cache,
        as_split="val" if "val" in splits or not was_split else None,
        progress=lambda done, total: callbacks.progress(f"reading {path.name}", done, total),
    ).val  # fmt: skip


def _sample_training_images(bundle: Bundle, path: Path, task: Task) -> Images | None:
    """Up to 256 training images, evenly spread over the list, without labels."""
    listing = list_images(path, task.name)
    names = [entry.path for entry in listing.entries if entry.split == "train"]
    if not names:
        return None
    spread = np.linspace(0, len(names) - 1, min(CALIBRATION_IMAGES, len(names))).round().astype(int)
    chosen = [names[row] for row in spread]
    loaded = pixel_cache.load_pixels(listing.root, chosen, bundle.preprocessing)
    readable = tuple(str(listing.root / name) for row, name in enumerate(chosen) if row not in loaded.reasons)
    if not readable:
        return None
    return Images(loaded.pixels, {}, readable, bundle.preprocessing.mean, bundle.preprocessing.std)


def _hold_out(images: Images) -> tuple[Images, Images]:
    """Split images into those to compare on and, evenly spread, up to a quarter of them to calibrate on."""
    total = len(images.pixels)
    is_held_out = torch.zeros(total, dtype=torch.bool)
    is_held_out[torch.linspace(0, total - 1, min(CALIBRATION_IMAGES, max(1, total // 4))).long()] = True
    return images.select((~is_held_out).nonzero().flatten()), images.select(is_held_out.nonzero().flatten())


def _batch_bounds(count: int) -> Iterator[tuple[int, int]]:
    start, sizes = 0, iter(FIRST_BATCHES)
    while start < count:
        stop = min(start + next(sizes, BATCH), count)
        yield start, stop
        start = stop


def _compare_task(task: str, model: Predictions, exported: Predictions) -> TaskCheck:
    expected, actual = model.logits[task].astype(np.float64), exported.logits[task].astype(np.float64)
    difference = float(np.abs(expected - actual).max())
    labeled = int((model.labels[task] >= 0).sum()) if task in model.labels else 0
    return TaskCheck(
        task=task,
        images=len(expected),
        difference=difference,
        relative=difference / max(float(np.abs(expected).max()), 1e-12),
        agreement=float((metrics.predicted_classes(model, task) == metrics.predicted_classes(exported, task)).mean()),
        labeled=labeled,
        accuracy=metrics.accuracy(model, task) if labeled else None,
        exported=metrics.accuracy(exported, task) if labeled else None,
    )
