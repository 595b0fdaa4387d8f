"""The one flow of `train` and `extend`: request, open, fit, finish, measure, record, publish."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from taskgraft import distributed
from taskgraft.bundle import Bundle, ImageLike, Prediction, read_bundle
from taskgraft.data.dataset import describe_changes
from taskgraft.data.task_images import TaskData
from taskgraft.errors import InputError, TaskgraftError
from taskgraft.models.inference import BATCH_SIZE, predict
from taskgraft.pipeline import fitting, measuring, recording
from taskgraft.pipeline.compression import open_compression
from taskgraft.pipeline.merging import open_merge
from taskgraft.pipeline.opening import Opened, open_request
from taskgraft.pipeline.parent_check import check_parent
from taskgraft.pipeline.refreshing import open_refresh
from taskgraft.pipeline.request import CompressionRequest, MergeRequest, RefreshRequest, Request, TrainingRequest
from taskgraft.results.predictions import Predictions, load_predictions
from taskgraft.results.record import Record, Stopwatch
from taskgraft.results.tables import html_table
from taskgraft.training import run_folder
from taskgraft.training.trainer import Fitted
from taskgraft.types import Callbacks, PathLike, Task


class Extension(NamedTuple):
    """A finished run.

    Attributes:
        bundle: The child.
        record: Settings, results and costs.
        predictions: Logits by set of images.
        out: The run folder.
    """

    bundle: Bundle
    record: Record
    predictions: dict[str, Predictions]
    out: Path

    def __repr__(self) -> str:
        """Name the folder and what every task reaches; all predictions would fill pages."""
        rates = [f"{task.name} {task.child.mean:.1%}" if task.child else task.name for task in self.record.tasks]
        return f"Extension({', '.join(rates)}; {self.out})"

    def _repr_html_(self) -> str:
        rates = [
            [task.name, *(f"{part.mean:.1%}" if part else "–" for part in (task.parent, task.child, task.agreement))]
            for task in self.record.tasks
        ]
        columns = ["task", "accuracy of the parent", "accuracy", "agreement with the parent"]
        return html_table(f"{self.record.method}: {self.out / 'report.html'}", columns, rates)

    def __fspath__(self) -> str:
        """Return the folder, so that a run can be given wherever a model is: the parent of the next extension."""
        return str(self.out)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks that the child answers, oldest first."""
        return self.bundle.tasks

    def predict(
        self, images: ImageLike | Tensor | Sequence[ImageLike], *, raw: bool = False, batch_size: int = BATCH_SIZE
    ) -> Prediction:
        """Predict every task with the child, see `Bundle.predict`.

        Args:
            images: Paths, Pillow images, uint8 arrays or a preprocessed tensor.
            raw: Do not calibrate the probabilities by the temperatures of the task cards.
            batch_size: Images that are held in memory and run at once.
        """
        return self.bundle.predict(images, raw=raw, batch_size=batch_size)

    def save_pretrained(self, folder: PathLike, *, memory: bool = True) -> Path:
        """Write the child into a folder without its run, see `Bundle.save_pretrained`."""
        return self.bundle.save_pretrained(folder, memory=memory)

    def push_to_hub(
        self,
        repo: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        token: str | None = None,
        memory: bool = False,
        message: str = "Upload a taskgraft bundle",
    ) -> str:
        """Upload the child to the Hugging Face Hub, see `Bundle.push_to_hub`."""
        return self.bundle.push_to_hub(
            repo, private=private, revision=revision, token=token, memory=memory, message=message
        )


def run(
    request: Request | TrainingRequest,
    out: Path,
    *,
    cache: Path | None = None,
    resume: bool = False,
    command: str = "",
    callbacks: Callbacks = Callbacks(),  # noqa: B008 - immutable
) -> Extension:
    """Carry out a request; a finished run of the same request is read, not repeated.

    Args:
        request: An extension, or a training, which is an extension without a parent.
        out: The run folder and bundle to write.
        cache: Folder of decoded pixels and features; None = in memory only.
        resume: Whether to continue a run that was interrupted.
        command: The command that was typed, for the record.
        callbacks: Progress callbacks.

    Raises:
        TaskgraftError: Bad input, before anything is written; or training failed.
    """
    stopwatch = Stopwatch()
    run_folder.check_location(out, request.list_sources(), request.list_models())
    if isinstance(request, MergeRequest):
        opened = open_merge(request, cache, callbacks)
    elif isinstance(request, CompressionRequest):
        opened = open_compression(request, cache, callbacks)
    elif isinstance(request, RefreshRequest):
        opened = open_refresh(request, cache, callbacks)
    else:
        opened = open_request(request, cache, callbacks)
    opened = _note_augmentation(opened, callbacks)
    settings = opened.list_settings()
    state = distributed.broadcast(
        lambda: run_folder.inspect(out, settings, resume, lambda: describe_changes(out, opened.images.new))
    )
    if state == "done":
        return _read_finished(out, opened.images, callbacks)
    stopwatch.lap("reading")
    opened = check_parent(opened, cache, callbacks, strict=state == "new")
    opened = opened.prepare(opened) if opened.prepare else opened
    with run_folder.lock(out):
        try:
            fitted = fitting.fit(opened, out, cache=cache, command=command, callbacks=callbacks)
            stopwatch.lap("training and validation")
            return _conclude(opened, fitted, out, command, stopwatch)
        except TaskgraftError:
            if distributed.is_main_process():
                run_folder.discard(out)
            raise


def _note_augmentation(opened: Opened, callbacks: Callbacks) -> Opened:
    """Say which operations of an augmentation have no effect on gray images."""
    if opened.parent.preprocessing.channels > 1 or opened.config.augment != "randaugment":
        return opened
    note = "randaugment: the images are gray, so that its changes of saturation have no effect"
    callbacks.info(note)
    return replace(opened, notes=(*opened.notes, note))


def load(out: PathLike) -> Extension:
    """Read a finished run from its folder.

    Raises:
        InputError: The folder holds none.
    """
    out = Path(out)
    try:
        record = Record.model_validate_json((out / "record.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{out} is not a finished run ({type(error).__name__}); give the OUT folder of a train or extend, or open "
            "a model without its run by taskgraft.open_parent"
        ) from error
    return Extension(read_bundle(out), record, load_predictions(out / "predictions.npz"), out)


def _conclude(opened: Opened, fitted: Fitted, out: Path, command: str, stopwatch: Stopwatch) -> Extension:
    """Finish, measure, record and publish."""
    request, parent, images = opened.request, opened.parent, opened.images
    classifier, memory = fitting.finish(opened, fitted)
    sets = measuring.predict_validation(classifier, images)
    sets |= {f"{name}-parent": predictions for name, predictions in (opened.parent_predictions or {}).items()}
    if images.new.test:
        sets["test"] = predict(classifier, images.new.test)  # once, at the end
    stopwatch.lap("finishing")
    record = recording.build_record(
        opened, fitted, classifier, memory, sets, out, command=command, seconds=stopwatch.seconds()
    )
    base = opened.student or parent
    bundle = replace(
        base,
        classifier=classifier,
        memory={**base.memory, **{name: tensors for name, tensors in memory.items() if tensors}},
        source=str(out),
        folder=out,
        lineage=(*parent.lineage, recording.build_lineage_entry(record)) if opened.has_parent else parent.lineage,
        cards=measuring.build_task_cards(parent.cards, images, sets, request.task, refreshed=opened.is_refresh),
    )

    def publish() -> None:
        recording.write_run(out, bundle, record, sets)
        run_folder.update(out, done=True)  # from here on the same command reads this run
        _delete_checkpoints(out)
        recording.write_report(out, record, sets, images)

    distributed.broadcast(publish)
    return Extension(bundle, record, sets, out)


def _read_finished(out: Path, images: TaskData, callbacks: Callbacks) -> Extension:
    """Read a finished run, and write its report where it was stopped before that."""
    extension = load(out)
    if (out / "report.html").exists():
        callbacks.info(f"{out} already holds this run, finished; nothing to do")
    else:
        distributed.broadcast(lambda: _delete_checkpoints(out))
        distributed.broadcast(lambda: recording.write_report(out, extension.record, extension.predictions, images))
        callbacks.info(f"{out} already holds this run, finished; its missing report was written")
    return extension


def _delete_checkpoints(out: Path) -> None:
    shutil.rmtree(out / "state", ignore_errors=True)  # they may hold old images
