"""The use case: parent + images of a new task + method -> a child that does both, and the evidence."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

from taskgraft import distributed
from taskgraft.bundle import Bundle, digests, read_bundle
from taskgraft.config import TrainingConfig
from taskgraft.data.dataset import describe_changes
from taskgraft.data.task_images import TaskData
from taskgraft.errors import InputError, TaskgraftError
from taskgraft.methods import composition
from taskgraft.methods.presets import DEFAULT_METHOD
from taskgraft.models.classifier import Classifier
from taskgraft.models.features import balance_added_classes
from taskgraft.pipeline import evidence, fitting, measuring
from taskgraft.pipeline.fitting import Job, Trained
from taskgraft.pipeline.request import Request, command_line
from taskgraft.results.files import digest, shown
from taskgraft.results.predictions import Predictions, load_predictions
from taskgraft.results.record import Clock, Record, StepMetrics, TaskResult, versions
from taskgraft.training import run_folder
from taskgraft.types import Callbacks, Memory, PathLike, as_path


class Extension(NamedTuple):
    """What `extend` leaves: the child, the evidence, and where they lie."""

    bundle: Bundle
    record: Record
    predictions: dict[str, Predictions]
    out: Path


def extend(
    parent: PathLike,
    data: PathLike,
    out: PathLike,
    *,
    task: str,
    method: str = DEFAULT_METHOD,
    config: TrainingConfig = TrainingConfig(),  # noqa: B008 - immutable
    old: PathLike | None = None,
    old_val: PathLike | Iterable[PathLike] = (),
    arch: str | None = None,
    labels: PathLike | None = None,
    preprocessing: str | None = None,
    parent_task: str = "parent",
    into: bool = False,
    check_parent: bool = True,
    cache: PathLike | None = None,
    resume: bool = False,
    callbacks: Callbacks = Callbacks(),  # noqa: B008 - immutable
) -> Extension:
    """Extend a trained classifier with a new task, as `taskgraft extend` does; see `Request` for the arguments.

    Writes the run folder and bundle `out`; a finished run of the same request is read, not repeated. `cache` is
    where decoded pixels are kept (None = in memory only). Raises TaskgraftError for bad input before anything is written.
    """
    request = Request(
        parent, data, task, method, config, old, old_val, arch, labels, preprocessing, parent_task, into, check_parent
    )
    return carry_out(request, Path(out), cache=as_path(cache), resume=resume, callbacks=callbacks)


def carry_out(
    request: Request,
    out: Path,
    *,
    cache: Path | None = None,
    resume: bool = False,
    command: str = "taskgraft.extend(…)",
    callbacks: Callbacks = Callbacks(),  # noqa: B008 - immutable
) -> Extension:
    """Do what a request asks; raises TaskgraftError for bad input before anything is written."""
    clock = Clock.start()
    run_folder.suited(out, request.sources())
    opened = fitting.open_all(request, cache, callbacks)
    settings = fitting.settings_of(opened)
    state = distributed.broadcast(
        lambda: run_folder.examine(out, settings, resume, lambda: describe_changes(out, opened.found.new))
    )
    if state == "done":
        return finished(out, opened.found, callbacks)
    clock = clock.lap("reading")
    asked = fitting.ask_parent(opened, callbacks, cache=cache, strict=state == "new")
    with run_folder.held(out):
        job = Job(asked, composition.build(opened.plan), out, cache, command, callbacks)
        try:
            trained, clock = fitting.train(job, settings, clock)
            return _finish(job, trained, clock)
        except TaskgraftError:
            if distributed.is_main_process():
                run_folder.withdraw(out)
            raise


def load(out: PathLike) -> Extension:
    """Read a finished run. Raises TaskgraftError where there is none."""
    out = Path(out)
    try:
        record = Record.model_validate_json((out / "record.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{out} holds no finished run ({type(error).__name__}); give the OUT folder of an extend"
        ) from error
    return Extension(read_bundle(out), record, load_predictions(out / "predictions.npz"), out)


def finished(out: Path, found: TaskData, callbacks: Callbacks) -> Extension:
    """Read a finished run of the same request; a report that is missing, since a stop came before it, is made."""
    done = load(out)
    if (out / "report.html").exists():
        callbacks.info(f"{out} holds this run, finished; nothing was done")
    else:
        distributed.broadcast(lambda: evidence.tell(out, done.record, done.predictions, found))
        callbacks.info(f"{out} holds this run, finished; its report was missing, and is there now")
    return done


def _finish(job: Job, trained: Trained, clock: Clock) -> Extension:
    """Let the method finish, measure once more, write the bundle; the run counts as done after that."""
    request, parent, found = job.opened.request, job.opened.parent, job.opened.found
    classifier, memory = trained.fitted.state.classifier, trained.fitted.state.memory
    kept, news = parent.memory, {}
    if job.method.finish:
        classifier, news = job.method.finish(classifier, memory, trained.sources)
        kept = {**kept, **{name: memory for name, memory in news.items() if memory}}
    balance_added_classes(classifier, trained.sources)
    before = {f"{name}-parent": value for name, value in trained.before.items()}
    sets = measuring.predictions(classifier, found) | before | measuring.tested(classifier, found)
    record = _record(job, trained, classifier, sets, clock.lap("finishing"), news)
    bundle = replace(
        parent,
        classifier=classifier,
        memory=kept,
        source=str(job.out),
        folder=job.out,
        lineage=(*parent.lineage, evidence.ancestor(record)),
        cards=measuring.cards(parent.cards, found, sets, request.task),
    )
    distributed.broadcast(lambda: evidence.publish(job.out, bundle, record, sets, found))
    return Extension(bundle, record, sets, job.out)


def _parent_history(parent: Bundle) -> tuple[StepMetrics, ...]:
    """The parent's own training, where its bundle has it."""
    file = parent.folder / "metrics.jsonl" if parent.folder else None
    return tuple(run_folder.history(parent.folder)) if parent.folder and file and file.exists() else ()


def _record(
    job: Job,
    trained: Trained,
    classifier: Classifier,
    sets: dict[str, Predictions],
    clock: Clock,
    news: Memory,
) -> Record:
    request, parent, config, fitted = job.opened.request, job.opened.parent, trained.config, trained.fitted
    tasks = evidence.task_results(sets, request.task)
    known = [task.child.mean for task in tasks if task.child]
    score = sum(known) / len(known) if len(known) == len(tasks) else None
    total = sum(value.numel() for value in classifier.parameters())
    inherited = sum(value.numel() for value in parent.classifier.parameters())
    return Record(
        command=job.command,
        seed=config.seed,
        method=request.method,
        config=asdict(config),
        parent={
            "source": shown(request.parent),
            "digest": parent.digest,
            "architecture": parent.arch,
            "tasks": [task.name for task in parent.classifier.tasks],
            "preprocessing": parent.preprocessing.to_text(),
            "lineage": list(parent.lineage),
            **({"files": digests.compute(parent.folder)} if parent.folder else {}),
            **({"labels": digest(request.labels)} if request.labels else {}),
        },
        data=job.opened.found.described,
        settings=evidence.settings_with_reasons(config, TrainingConfig(), _reasons(trained, request.config)),
        tasks=tasks,
        score=score,
        step=fitted.step,
        history=fitted.history,
        parent_history=_parent_history(parent),
        parameters={"child": total, "parent": inherited, "added": total - inherited},
        flops=measuring.arithmetic_of(classifier, parent.classifier, job.opened.found),
        latency=measuring.latency_of(classifier, parent.classifier, job.opened.found),
        seconds=clock.seconds(),
        versions=versions(),
        one_backbone=not len(classifier.extras),
        notes=(*_notes(job, tasks, score is not None, news), *evidence.surroundings(job.out)),
        reproduce_command=command_line(job.opened.request, job.out),
    )


def _reasons(trained: Trained, asked: TrainingConfig) -> dict[str, str]:
    """Why settings are what they are, where neither the user nor the default says it."""
    more = trained.config.micro_batches > asked.micro_batches
    return {"precision": trained.reason, **({"micro_batches": "memory ran out at fewer"} if more else {})}


def _notes(job: Job, tasks: tuple[TaskResult, ...], scored: bool, news: Memory) -> tuple[str, ...]:
    found, parent = job.opened.found, job.opened.parent
    notes = evidence.warnings_of(tasks, found.described)
    notes += composition.notes(job.opened.plan, news, parent.memory, has_old=found.old is not None)
    if not scored:
        notes.append(
            "not every old task has validation images: old accuracy is unknown, "
            "the last step was kept, and agreement is a proxy"
        )
    return tuple(notes)
