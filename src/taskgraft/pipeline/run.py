"""The one flow of `train` and `extend`: request, open, fit, finish, measure, record, publish."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from taskgraft import distributed
from taskgraft.bundle import Bundle, read_bundle
from taskgraft.data.dataset import describe_changes
from taskgraft.data.task_images import TaskData
from taskgraft.errors import InputError, TaskgraftError
from taskgraft.pipeline import fitting, measuring, publishing, recording
from taskgraft.pipeline.opening import Opened, open_request
from taskgraft.pipeline.parent_check import check_parent
from taskgraft.pipeline.request import Request, TrainingRequest
from taskgraft.results.predictions import Predictions, load_predictions
from taskgraft.results.record import Record, Stopwatch
from taskgraft.training import run_folder
from taskgraft.training.trainer import Fitted
from taskgraft.types import Callbacks, PathLike


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
        callbacks: Told of progress.

    Returns:
        The finished run.

    Raises:
        TaskgraftError: Bad input, before anything is written; or training failed.
    """
    stopwatch = Stopwatch()
    run_folder.check_location(out, request.list_sources())
    opened = open_request(request, cache, callbacks)
    settings = opened.list_settings()
    state = distributed.broadcast(
        lambda: run_folder.inspect(out, settings, resume, lambda: describe_changes(out, opened.images.new))
    )
    if state == "done":
        return _read_finished(out, opened.images, callbacks)
    stopwatch.lap("reading")
    opened = check_parent(opened, cache, callbacks, strict=state == "new")
    with run_folder.lock(out):
        try:
            fitted = fitting.fit(opened, out, cache=cache, command=command, callbacks=callbacks)
            stopwatch.lap("training and validation")
            return _conclude(opened, fitted, out, command, stopwatch)
        except TaskgraftError:
            if distributed.is_main_process():
                run_folder.discard(out)
            raise


def load(out: PathLike) -> Extension:
    """Read a finished run.

    Args:
        out: Its run folder.

    Returns:
        The run.

    Raises:
        InputError: There is none.
    """
    out = Path(out)
    try:
        record = Record.model_validate_json((out / "record.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{out} is not a finished run ({type(error).__name__}); give the OUT folder of a train or extend"
        ) from error
    return Extension(read_bundle(out), record, load_predictions(out / "predictions.npz"), out)


def _conclude(opened: Opened, fitted: Fitted, out: Path, command: str, stopwatch: Stopwatch) -> Extension:
    """Finish, measure, record and publish."""
    request, parent, images = opened.request, opened.parent, opened.images
    classifier, memory = fitting.finish(opened, fitted)
    before = {f"{name}-parent": predictions for name, predictions in (opened.parent_predictions or {}).items()}
    sets = measuring.predict_validation(classifier, images) | before | measuring.predict_test(classifier, images)
    stopwatch.lap("finishing")
    record = recording.build_record(
        opened, fitted, classifier, memory, sets, out, command=command, seconds=stopwatch.seconds()
    )
    bundle = replace(
        parent,
        classifier=classifier,
        memory={**parent.memory, **{name: part for name, part in memory.items() if part}},
        source=str(out),
        folder=out,
        lineage=(*parent.lineage, recording.build_lineage_entry(record)) if opened.old_tasks else parent.lineage,
        cards=measuring.build_task_cards(parent.cards, images, sets, request.task),
    )

    def write() -> None:
        publishing.write_run(out, bundle, record, sets)
        publishing.publish(out)
        publishing.delete_state(out)
        publishing.write_report(out, record, sets, images)

    distributed.broadcast(write)
    return Extension(bundle, record, sets, out)


def _read_finished(out: Path, images: TaskData, callbacks: Callbacks) -> Extension:
    """Read a finished run, and write its report where a stop came before it."""
    done = load(out)
    if (out / "report.html").exists():
        callbacks.info(f"{out} already holds this run, finished; nothing to do")
    else:
        distributed.broadcast(lambda: publishing.delete_state(out))
        distributed.broadcast(lambda: publishing.write_report(out, done.record, done.predictions, images))
        callbacks.info(f"{out} already holds this run, finished; its missing report was written")
    return done
