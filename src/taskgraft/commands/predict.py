"""Predictions for images and videos without labels, one row each, streamed or written to a file."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock

from taskgraft import distributed
from taskgraft.bundle import open_parent
from taskgraft.commands.prediction_files import Row, RowFormat, check_suffix, write_rows
from taskgraft.data import decode, streaming
from taskgraft.data.streaming import MediaFile, StreamedImage
from taskgraft.errors import InputError, require
from taskgraft.models import inference
from taskgraft.results.files import fingerprint, write_json
from taskgraft.results.predictions import Predictions
from taskgraft.training.run_folder import differences
from taskgraft.types import Callbacks, Images, PathLike, as_paths

CHUNK_SIZE = 1024  # images of a part: seconds to minutes of work
MAX_LISTED = 5  # skipped files that are named


@dataclass(frozen=True)
class PredictOptions:
    """How to open the model and what its predictions depend on.

    Attributes:
        top: Classes to list for each task.
        raw: Do not calibrate with the temperatures of the task cards.
        every: Seconds between the frames taken from a video.
        batch_size: Images per forward pass.
        arch: timm architecture of a model that does not say.
        labels: File with its class names.
        preprocessing: Its preprocessing.
        parent_task: Name for the task of a model without task names; None = that of its file.
    """

    top: int = 1
    raw: bool = False
    every: float = 0.5
    batch_size: int = 32
    arch: str | None = None
    labels: PathLike | None = None
    preprocessing: str | None = None
    parent_task: str | None = None

    def __post_init__(self) -> None:
        """Raise InputError for values out of range."""
        if self.top < 1:
            raise InputError(f"--top {self.top} is too small; give 1 or more")
        if self.batch_size < 1 or not self.every > 0:
            raise InputError("--batch-size must be at least 1, and --every longer than 0 seconds")


class Summary(NamedTuple):
    """Number of images with predictions and of unreadable ones; `done` is False until other workers finish."""

    predicted: int
    unreadable: int
    done: bool = True


class Predictor:
    """An opened model that predicts images and videos.

    Attributes:
        bundle: the model, on this process's device.
        options: how it predicts.
        row_format: what a row of its predictions contains.
    """

    def __init__(self, model: PathLike, options: PredictOptions, callbacks: Callbacks) -> None:
        """Open the model; `callbacks.info` gets what had to be inferred, and what is wrong with a video.

        Raises:
            CheckpointError: it cannot be opened.
        """
        self.options = options
        self.callbacks = callbacks
        self.bundle = bundle = open_parent(
            model, arch=options.arch, labels=options.labels, preprocessing=options.preprocessing,
            task=options.parent_task,
        )  # fmt: skip
        for note in bundle.notes if bundle.folder is None else ():
            callbacks.info(f"model: {note}")
        tasks = bundle.classifier.to(distributed.device()).tasks
        self.row_format = RowFormat(
            classes={task.name: task.classes for task in tasks},
            temperatures={task.name: 1.0 if options.raw else bundle.temperature(task) for task in tasks},
            softmax=bundle.classifier.softmax,
            top=options.top,
        )

    def stream(self, files: Sequence[MediaFile]) -> Iterator[StreamedImage]:
        """Decode images and frames in order."""
        return streaming.stream_images(files, self.bundle.preprocessing, self.options.every)

    def predict(self, images: Iterable[StreamedImage]) -> Iterator[tuple[list[StreamedImage], Predictions | None]]:
        """Yield the images in order, in batches, with the predictions for those that are readable."""
        size = self.options.batch_size
        batch: list[StreamedImage] = []
        readable = 0
        for image in images:
            batch.append(image)
            readable += image.pixels is not None
            if readable >= size or len(batch) >= 4 * size:
                yield batch, self._predict_batch(batch)
                batch, readable = [], 0
        if batch:
            yield batch, self._predict_batch(batch)

    def predict_rows(self, files: Sequence[MediaFile]) -> Iterator[Row]:
        """Yield a row for each image and frame; for a video, errors are also reported by `callbacks.info`."""
        for batch, predictions in self.predict(self.stream(files)):
            rows = iter(self.row_format.rows(predictions) if predictions else [])
            for image in batch:
                if image.pixels is not None:
                    yield next(rows)
                    continue
                if files[0].is_video:
                    self.callbacks.info(f"{image.name}: {image.reason}")
                yield {"id": image.name, "error": image.reason}

    def _predict_batch(self, batch: Sequence[StreamedImage]) -> Predictions | None:
        readable = [(image.name, image.pixels) for image in batch if image.pixels is not None]
        if not readable:
            return None
        names, arrays = zip(*readable, strict=True)
        pixels, preprocessing = torch.from_numpy(np.stack(arrays)), self.bundle.preprocessing
        images = Images(pixels, {}, names, preprocessing.mean, preprocessing.std)
        return inference.predict(self.bundle.classifier, images, self.options.batch_size)


def predict_files(
    model: PathLike,
    paths: PathLike | Iterable[PathLike],
    *,
    callbacks: Callbacks = Callbacks(),  # noqa: B008 - immutable
    **options: Any,
) -> Iterator[Row]:
    """Predict all tasks for images and videos. Memory does not grow with their number.

    Args:
        model: A bundle, or any other model that `extend` accepts.
        paths: One or several images, videos and folders of them.
        callbacks: Progress callbacks.
        options: Those of `PredictOptions`: top, raw, every, batch_size, arch, labels, preprocessing, parent_task.

    Yields:
        In the order of the images, {"id", "tasks": {task: {"label", "probability"}}}, or {"id", "error"} for an image
        that cannot be read.

    Raises:
        TaskgraftError: The model cannot be opened, or a path does not exist or holds no images.
    """
    settings = PredictOptions(**options)
    files = list_media(as_paths(paths), callbacks)
    predictor = Predictor(model, settings, callbacks)
    for number, chunk in enumerate(split_work(files, CHUNK_SIZE)):
        callbacks.progress("predicting", number * CHUNK_SIZE, len(files))
        yield from predictor.predict_rows(chunk)


def predict_to(
    model: PathLike,
    paths: PathLike | Iterable[PathLike],
    out: PathLike,
    *,
    resume: bool = False,
    shard: tuple[int, int] = (0, 1),
    chunk_size: int = CHUNK_SIZE,
    callbacks: Callbacks = Callbacks(),  # noqa: B008 - immutable
    **options: Any,
) -> Summary:
    """Predict all tasks for images and videos, and write the rows to a file.

    Parts of `chunk_size` images are written to OUT.parts and joined once all are there. The file is the same however
    often the work was interrupted and however many workers shared it.

    Args:
        model: A bundle, or any other model that `extend` accepts.
        paths: One or several images, videos and folders of them.
        out: File to write: .jsonl, .csv or .parquet.
        resume: Whether to continue an interrupted run.
        shard: (worker, number of workers): parts worker, worker + workers, … are its; whoever ends last joins all.
        chunk_size: Images per part.
        callbacks: Progress callbacks.
        options: Those of `PredictOptions`.

    Raises:
        TaskgraftError: As `predict_files`; or OUT exists and `resume` is False, or its parts are of another run.
    """
    out, settings = Path(out), PredictOptions(**options)
    check_suffix(out)
    files = list_media(as_paths(paths), callbacks)
    predictor = Predictor(model, settings, callbacks)
    chunks, parts = split_work(files, chunk_size), _Parts(out)
    plan = {
        "model": predictor.bundle.digest,
        "preprocessing": predictor.bundle.preprocessing.to_text(),
        "images": len(files),
        "names": fingerprint(file.name for file in files),
        "temperatures": predictor.row_format.temperatures,
        "settings": {
            "top": settings.top,
            "raw": settings.raw,
            "every": settings.every,
            "batch_size": settings.batch_size,
            "chunk_size": chunk_size,
        },
    }
    worker, workers = shard
    if parts.begin(plan, resume or workers > 1):
        callbacks.info(f"{out} is complete; nothing to do")
        return Summary(0, 0)
    for number in range(worker, len(chunks), workers):
        callbacks.progress("predicting", number, len(chunks))
        part = parts.path(number)
        if not part.exists():
            write_rows(part, predictor.predict_rows(chunks[number]), predictor.row_format)
    return parts.join(len(chunks), predictor.row_format)


def predict_on_ray(
    model: PathLike,
    paths: PathLike | Iterable[PathLike],
    out: PathLike,
    *,
    address: str,
    resume: bool = False,
    workers: int = 0,
    chunk_size: int = CHUNK_SIZE,
    callbacks: Callbacks = Callbacks(),  # noqa: B008 - immutable
    **options: Any,
) -> Summary:
    """Do what `predict_to` does on a Ray cluster, whose machines must see the same files at the same paths.

    A worker that dies is restarted and continues after its last complete part.

    Args:
        model: As in `predict_to`.
        paths: As in `predict_to`.
        out: As in `predict_to`.
        address: Address of the cluster, or "local".
        resume: As in `predict_to`.
        workers: Number of workers; 0 = one for each processor of the cluster. Never more than parts.
        chunk_size: As in `predict_to`.
        callbacks: Progress callbacks.
        options: As in `predict_to`.
    """
    require("ray", "ray", what="--ray")
    import ray
    from ray.exceptions import RayTaskError

    out, paths = Path(out), as_paths(paths)
    check_suffix(out)
    parts = len(split_work(list_media(paths, callbacks), chunk_size))
    if (out.exists() or _Parts(out).folder.exists()) and not resume:
        raise InputError(f"{out} or parts of it exist; choose another --out, or --resume if it is of the same command")
    ray.init(None if address == "local" else address, log_to_driver=False, include_dashboard=False, logging_level=40)
    try:
        shards = max(1, min(parts, workers or int(ray.cluster_resources().get("CPU", 1))))
        task: Any = ray.remote(max_retries=3)(_predict_shard)
        common = {"resume": True, "chunk_size": chunk_size, **options}
        summaries = ray.get([
            task.remote(Path.cwd(), decode.chosen_workers(), model, paths, out, shard=(number, shards), **common)
            for number in range(shards)
        ])  # fmt: skip
    except RayTaskError as error:  # the worker's own error, for the same message as without Ray
        raise error.cause from error
    finally:
        ray.shutdown()
    return max(summaries, key=lambda summary: (summary.done, summary.predicted + summary.unreadable))


def _predict_shard(folder: Path, threads: int, *arguments: Any, **options: Any) -> Summary:
    """The work of one Ray worker, with decoding threads as the driver; relative paths start at the driver's folder."""
    os.chdir(folder)
    with decode.use_workers(threads):
        return predict_to(*arguments, **options)


def list_media(paths: Iterable[PathLike], callbacks: Callbacks) -> tuple[MediaFile, ...]:
    """List the images and videos at some paths, and report what was skipped.

    Raises:
        InputError: there are none.
        DataError: a path does not exist.
    """
    files, skipped = streaming.find_media(map(Path, paths))
    for path, reason in skipped[:MAX_LISTED]:
        callbacks.info(f"skipped: {path} ({reason})")
    if len(skipped) > MAX_LISTED:
        callbacks.info(f"skipped: {len(skipped) - MAX_LISTED} more")
    if not files:
        raise InputError("no image or video found; give images, videos or folders of them")
    return files


def split_work(files: Sequence[MediaFile], size: int) -> list[Sequence[MediaFile]]:
    """Split files into chunks of up to `size` images, or one video. Batches do not cross chunks."""
    chunks: list[list[MediaFile]] = []
    for file in files:
        if file.is_video or not chunks or chunks[-1][0].is_video or len(chunks[-1]) >= size:
            chunks.append([])
        chunks[-1].append(file)
    return list(chunks)


class _Parts:
    """OUT.parts: the rows of each chunk as JSON lines, until they are joined. Several processes may write them."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.folder = out.with_name(f"{out.name}.parts")

    def path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.jsonl"

    def begin(self, plan: Mapping[str, Any], resume: bool) -> bool:
        """Create the folder, or check that it belongs to the same plan; True if OUT is complete already."""
        plan_file = self.folder / "plan.json"
        try:
            with self._lock():
                if self.out.exists():
                    if resume:
                        return True
                    raise InputError(
                        f"{self.out} exists; choose another --out, or --resume if it is of the same command"
                    )
                if plan_file.exists():
                    self._check_plan(plan_file, plan, resume)
                else:
                    write_json(plan_file, plan)
        except OSError as error:
            raise InputError(f"--out {self.out} cannot be written: {error.strerror}; choose another path") from error
        return False

    def join(self, count: int, row_format: RowFormat) -> Summary:
        """Write OUT from all parts and delete them; nothing while some are missing."""
        with self._lock():
            if self.out.exists():  # another worker was faster
                return Summary(0, 0)
            parts = [self.path(number) for number in range(count)]
            if not all(part.exists() for part in parts):
                return Summary(0, 0, done=False)
            total = unreadable = 0

            def read_rows() -> Iterator[Row]:
                nonlocal total, unreadable
                for part in parts:
                    with part.open(encoding="utf-8") as file:
                        for row in map(json.loads, file):
                            total += 1
                            unreadable += "error" in row
                            yield row

            write_rows(self.out, read_rows(), row_format)
            shutil.rmtree(self.folder)
            return Summary(total - unreadable, unreadable)

    def _check_plan(self, file: Path, plan: Mapping[str, Any], resume: bool) -> None:
        if not resume:
            raise InputError(f"{self.folder} is from an interrupted run; continue with --resume, or remove it")
        try:
            changes = differences(json.loads(file.read_text(encoding="utf-8")), json.loads(json.dumps(plan)))
        except (ValueError, AttributeError) as error:
            raise InputError(f"{file} is damaged; remove {self.folder} and start again") from error
        if changes:
            raise InputError(
                f"{self.folder} is from another run: {'; '.join(changes[:5])}; choose another --out, or remove it"
            )

    @contextmanager
    def _lock(self) -> Iterator[None]:
        file = self.out.with_name(f".{self.out.name}.lock")
        self.out.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file):
            try:
                yield
            finally:
                if self.out.exists():
                    file.unlink(missing_ok=True)  # whoever still waits for it finds OUT
