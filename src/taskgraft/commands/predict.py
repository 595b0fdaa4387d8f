"""A model on images and videos without labels: rows of answers, streamed, or a file of them made in parts."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from taskgraft import distributed
from taskgraft.bundle import Bundle, open_parent
from taskgraft.commands import parts, rows
from taskgraft.data import streaming
from taskgraft.data.streaming import MediaFile, StreamedImage
from taskgraft.data.transforms import Preprocessing
from taskgraft.errors import InputError, require
from taskgraft.models import inference
from taskgraft.models.classifier import Classifier
from taskgraft.results.files import fingerprint
from taskgraft.results.predictions import Predictions
from taskgraft.types import Callbacks, Images, PathLike, as_paths

EVERY = 0.5  # seconds between frames of a video
BATCH = 32
CHUNK = 1024  # images of a part: seconds to minutes of work
SHOWN = 5  # unreadable images that are named


class Asked(NamedTuple):
    """What decides the answers: the model as `open_parent` is given it, and how it is asked."""

    model: PathLike
    top: int = 1
    raw: bool = False  # without the temperatures of the task cards
    every: float = EVERY
    batch_size: int = BATCH
    arch: str | None = None
    labels: PathLike | None = None
    preprocessing: str | None = None
    parent_task: str = "parent"


class Summary(NamedTuple):
    """What became of a set of images. `done` is False while parts are missing that other workers make."""

    read: int
    bad: int
    done: bool = True
    out: Path | None = None


def predict_files(
    model: PathLike,
    paths: PathLike | Iterable[PathLike],
    *,
    callbacks: Callbacks = Callbacks(),  # noqa: B008 - immutable
    **options: Any,
) -> Iterator[rows.Row]:
    """Rows of answers to all tasks, in the order of the images: {"id", "tasks": {task: {"label", "probability"}}}.

    `paths` is one or several of images, videos and folders of them. Options are those of `Asked`: top, raw, every
    (seconds), batch_size, arch, labels, preprocessing, parent_task. An image that cannot be read has a row {"id",
    "error"}. Memory does not grow with the number of images. Raises TaskgraftError for a path that does not exist or
    holds nothing.
    """
    yield from answer(Asked(model, **options), as_paths(paths), callbacks)


def answer(asked: Asked, paths: Iterable[str | Path], callbacks: Callbacks) -> Iterator[rows.Row]:
    """The rows of `predict_files`."""
    items = listed(paths, callbacks)
    bundle = opened(asked, callbacks)
    shape = shape_of(bundle, asked)
    for number, chunk in enumerate(chunks(items, CHUNK)):
        callbacks.progress("predicting", number * CHUNK, len(items))
        yield from _answered(bundle, shape, asked, chunk, callbacks)


def predict_to(
    out: PathLike,
    asked: Asked,
    paths: PathLike | Iterable[PathLike],
    *,
    resume: bool = False,
    shard: tuple[int, int] = (0, 1),
    chunk: int = CHUNK,
    callbacks: Callbacks = Callbacks(),  # noqa: B008 - immutable
) -> Summary:
    """Write the rows to OUT; its suffix (.jsonl, .csv, .parquet) says how.

    Works in parts of `chunk` images that are kept in OUT.parts until all are whole; then they are joined, once.
    `shard` (worker, workers) makes every so-many-th part; workers that share the folder may run at the same time, and
    whoever is last joins. The file is the same whatever stops and workers there were. Raises TaskgraftError for an
    OUT that
    exists, without `resume`.
    """
    out = Path(out)
    rows.kind_of(out)
    items = listed(as_paths(paths), callbacks)
    bundle = opened(asked, callbacks)
    shape = shape_of(bundle, asked)
    work = chunks(items, chunk)
    plan = {
        "model": bundle.digest,
        "preprocessing": bundle.preprocessing.to_text(),
        "images": len(items),
        "names": fingerprint(item.name for item in items),
        "temperatures": dict(shape.temperatures),
        "settings": {
            "top": asked.top,
            "raw": asked.raw,
            "every": asked.every,
            "batch_size": asked.batch_size,
            "chunk": chunk,
        },
    }
    if parts.begin(out, plan, resume or shard[1] > 1):
        callbacks.info(f"{out} is finished; nothing was done")
        return Summary(0, 0, True, out)
    for number in range(shard[0], len(work), shard[1]):
        callbacks.progress("predicting", number, len(work))
        if parts.finished(out, number):
            continue
        read = bad = 0
        with rows.writing(parts.place(out, number), shape) as write:
            for row in _answered(bundle, shape, asked, work[number], callbacks):
                write(row)
                bad += "error" in row
                read += "tasks" in row
        parts.finish(out, number, parts.Count(read, bad))
    count = parts.join(out, len(work))
    return Summary(count.read, count.bad, True, out) if count else Summary(0, 0, False, out)


def predict_on_ray(
    address: str,
    out: Path,
    asked: Asked,
    paths: Iterable[str | Path],
    *,
    resume: bool = False,
    workers: int = 0,
    chunk: int = CHUNK,
    callbacks: Callbacks = Callbacks(),  # noqa: B008 - immutable
) -> Summary:
    """The same by workers of a Ray cluster (`address`, or "local"), which must see the same files at the same paths.

    `workers` 0 = one for each processor of the cluster, no more than there are parts. A worker that dies is started
    again and goes on after its last whole part.
    """
    require("ray", "ray", what="--ray")
    import ray
    from ray.exceptions import RayTaskError

    rows.kind_of(out)
    given = [str(path) for path in paths]
    work = len(chunks(listed(given, callbacks), chunk))
    if (out.exists() or parts.home(out).exists()) and not resume:
        raise InputError(f"{out} exists or was begun; choose another --out, or --resume if it is of the same command")
    ray.init(None if address == "local" else address, log_to_driver=False, include_dashboard=False, logging_level=40)
    try:
        processors = int(ray.cluster_resources().get("CPU", 1))
        shards = max(1, min(work, workers or processors))
        task: Any = ray.remote(max_retries=3)(_shard)
        here = Path.cwd()
        done = ray.get([task.remote(here, out, asked, given, (number, shards), chunk) for number in range(shards)])
    except RayTaskError as error:  # the worker's own error, for the same line as without Ray
        raise error.cause from error
    finally:
        ray.shutdown()
    return max(
        done, key=lambda one: (one.done, one.read + one.bad)
    )  # whoever joined the parts knows how many images there were


def _shard(here: Path, out: Path, asked: Asked, given: Sequence[str], shard: tuple[int, int], chunk: int) -> Summary:
    """What one worker does, with relative paths from where the command was given."""
    os.chdir(here)
    return predict_to(out, asked, given, resume=True, shard=shard, chunk=chunk)


def listed(paths: Iterable[str | Path], callbacks: Callbacks) -> tuple[MediaFile, ...]:
    """The files that the paths hold; says what was left out. Raises TaskgraftError where nothing is left."""
    found = streaming.find_media(paths)
    for where, reason in found.skipped[:SHOWN]:
        callbacks.info(f"left out: {where} ({reason})")
    if len(found.skipped) > SHOWN:
        callbacks.info(f"left out: {len(found.skipped) - SHOWN} more")
    if not found.items:
        raise InputError("there is no image or video in what was given; give some, or folders of them")
    return found.items


def opened(asked: Asked, callbacks: Callbacks) -> Bundle:
    """The model that is asked; says what was inferred of it."""
    if asked.top < 1:
        raise InputError(f"--top {asked.top} is too small; give 1 or more")
    if asked.batch_size < 1 or not asked.every > 0:
        raise InputError("--batch-size or --every is too small; give 1 or more, and more than 0 seconds")
    bundle = open_parent(
        asked.model, arch=asked.arch, labels=asked.labels, preprocessing=asked.preprocessing, task=asked.parent_task
    )
    for line in bundle.notes if bundle.folder is None else ():
        callbacks.info(f"model: {line}")
    bundle.classifier.to(distributed.device())
    return bundle


def shape_of(bundle: Bundle, asked: Asked) -> rows.Shape:
    """The columns of the answers, with the temperatures of the task cards that fit."""
    classes = {task.name: task.classes for task in bundle.classifier.tasks}
    known = {} if asked.raw else temperatures(bundle)
    return rows.Shape(classes, bundle.classifier.softmax, asked.top, known)


def temperatures(bundle: Bundle) -> dict[str, float]:
    """The temperature of each task that has one on a card for just its classes."""
    found = {}
    for task in bundle.classifier.tasks:
        card = bundle.cards.get(task.name, {})
        if card.get("temperature") and list(card.get("classes", ())) == list(task.classes):
            found[task.name] = float(card["temperature"])
    return found


def chunks(items: Sequence[MediaFile], size: int) -> list[Sequence[MediaFile]]:
    """Parts of the work: up to `size` images, or one video. Batches do not cross them: a part is always the same."""
    found: list[list[MediaFile]] = []
    for item in items:
        if item.is_video or not found or found[-1][0].is_video or len(found[-1]) >= size:
            found.append([])
        found[-1].append(item)
    return list(found)


def asked_of(
    classifier: Classifier, pictures: Iterable[StreamedImage], preprocessing: Preprocessing, size: int
) -> Iterator[tuple[list[StreamedImage], Predictions | None]]:
    """Images in order, a batch of at most `size` readable ones at a time, with the answers to those."""
    waiting: list[StreamedImage] = []
    ready = 0
    for picture in pictures:
        waiting.append(picture)
        ready += picture.pixels is not None
        if ready >= size or len(waiting) >= 4 * size:
            yield waiting, _ask(classifier, waiting, preprocessing, size)
            waiting, ready = [], 0
    if waiting:
        yield waiting, _ask(classifier, waiting, preprocessing, size)


def _ask(
    classifier: Classifier, given: Sequence[StreamedImage], preprocessing: Preprocessing, size: int
) -> Predictions | None:
    good = [(picture.name, picture.pixels) for picture in given if picture.pixels is not None]
    if not good:
        return None
    pixels = torch.from_numpy(np.stack([pixels for _, pixels in good]))
    return inference.predict(
        classifier, Images(pixels, {}, tuple(name for name, _ in good), preprocessing.mean, preprocessing.std), size
    )


def _answered(
    bundle: Bundle, shape: rows.Shape, asked: Asked, chunk: Sequence[MediaFile], callbacks: Callbacks
) -> Iterator[rows.Row]:
    """The rows of a part; what is wrong with a video is also said, since its other frames have answers."""
    pictures = streaming.stream_images(chunk, bundle.preprocessing, asked.every)
    for given, predictions in asked_of(bundle.classifier, pictures, bundle.preprocessing, asked.batch_size):
        found = iter(rows.answer_rows(predictions, shape) if predictions else [])
        for picture in given:
            if picture.pixels is None:
                if chunk[0].is_video:
                    callbacks.info(f"{picture.name}: {picture.reason}")
                yield {"id": picture.name, "error": picture.reason}
            else:
                yield next(found)
