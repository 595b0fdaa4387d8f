"""The use case: parent + images of a new task + method -> a child that does both, and the evidence."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from taskgraft import methods, parallel
from taskgraft.bundle import Bundle, digests, read
from taskgraft.classifier import Classifier
from taskgraft.data.sets import changes
from taskgraft.data.sources import Inputs
from taskgraft.features import balance
from taskgraft.jobs import evidence, fitting, measuring
from taskgraft.jobs.fitting import Job, Trained
from taskgraft.jobs.request import Request, command_line
from taskgraft.loop import folder
from taskgraft.problem import Problem
from taskgraft.record import Clock, Line, Predictions, Record, TaskResult, digest, load_predictions, shown, versions
from taskgraft.settings import METHOD, Run
from taskgraft.types import Memory, PathLike, Watch, as_path


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
    method: str = METHOD,
    run: Run = Run(),  # noqa: B008 - immutable
    old: PathLike | None = None,
    old_val: PathLike | Iterable[PathLike] = (),
    arch: str | None = None,
    labels: PathLike | None = None,
    wanted: str | None = None,
    parent_task: str = "parent",
    into: bool = False,
    check_parent: bool = True,
    cache: PathLike | None = None,
    resume: bool = False,
    watch: Watch = Watch(),  # noqa: B008 - immutable
) -> Extension:
    """Extend a trained classifier with a new task, as `taskgraft extend` does; see `Request` for the arguments.

    Writes the run folder and bundle `out`; a finished run of the same request is read, not repeated. `cache` is
    where decoded pixels are kept (None = in memory only). Raises Problem for bad input before anything is written.
    """
    request = Request(
        parent, data, task, method, run, old, old_val, arch, labels, wanted, parent_task, into, check_parent
    )
    return carry_out(request, Path(out), cache=as_path(cache), resume=resume, watch=watch)


def carry_out(
    request: Request,
    out: Path,
    *,
    cache: Path | None = None,
    resume: bool = False,
    command: str = "taskgraft.extend(…)",
    watch: Watch = Watch(),  # noqa: B008 - immutable
) -> Extension:
    """Do what a request asks; raises Problem for bad input before anything is written."""
    clock = Clock.start()
    folder.suited(out, request.sources())
    opened = fitting.open_all(request, cache, watch)
    settings = fitting.settings_of(opened)
    state = parallel.told(lambda: folder.examine(out, settings, resume, lambda: changes(out, opened.found.new)))
    if state == "done":
        return finished(out, opened.found, watch)
    clock = clock.lap("reading")
    asked = fitting.ask_parent(opened, watch, cache=cache, strict=state == "new")
    with folder.held(out):
        job = Job(asked, methods.build(opened.plan), out, cache, command, watch)
        try:
            trained, clock = fitting.train(job, settings, clock)
            return _finish(job, trained, clock)
        except Problem:
            if parallel.chief():
                folder.withdraw(out)
            raise


def load(out: PathLike) -> Extension:
    """Read a finished run. Raises Problem where there is none."""
    out = Path(out)
    try:
        record = Record.model_validate_json((out / "record.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Problem(
            f"{out} holds no finished run ({type(error).__name__}); give the OUT folder of an extend"
        ) from error
    return Extension(read(out), record, load_predictions(out / "predictions.npz"), out)


def finished(out: Path, found: Inputs, watch: Watch) -> Extension:
    """Read a finished run of the same request; a report that is missing, since a stop came before it, is made."""
    done = load(out)
    if (out / "report.html").exists():
        watch.say(f"{out} holds this run, finished; nothing was done")
    else:
        parallel.told(lambda: evidence.tell(out, done.record, done.predictions, found))
        watch.say(f"{out} holds this run, finished; its report was missing, and is there now")
    return done


def _finish(job: Job, trained: Trained, clock: Clock) -> Extension:
    """Let the method finish, measure once more, write the bundle; the run counts as done after that."""
    request, parent, found = job.opened.request, job.opened.parent, job.opened.found
    classifier, memory = trained.fitted.state.classifier, trained.fitted.state.memory
    kept, news = parent.memory, {}
    if job.method.finish:
        classifier, news = job.method.finish(classifier, memory, trained.sources)
        kept = {**kept, **{name: memory for name, memory in news.items() if memory}}
    balance(classifier, trained.sources)
    before = {f"{name}-parent": value for name, value in trained.before.items()}
    sets = measuring.predictions(classifier, found) | before | measuring.tested(classifier, found)
    record = _record(job, trained, classifier, sets, clock.lap("finishing"), news)
    bundle = parent._replace(
        classifier=classifier,
        memory=kept,
        source=str(job.out),
        home=job.out,
        lineage=(*parent.lineage, evidence.ancestor(record)),
        cards=measuring.cards(parent.cards, found, sets, request.task),
    )
    parallel.told(lambda: evidence.publish(job.out, bundle, record, sets, found))
    return Extension(bundle, record, sets, job.out)


def _parent_history(parent: Bundle) -> tuple[Line, ...]:
    """The parent's own training, where its bundle has it."""
    file = parent.home / "metrics.jsonl" if parent.home else None
    return tuple(folder.history(parent.home)) if parent.home and file and file.exists() else ()


def _record(
    job: Job,
    trained: Trained,
    classifier: Classifier,
    sets: dict[str, Predictions],
    clock: Clock,
    news: Memory,
) -> Record:
    request, parent, run, fitted = job.opened.request, job.opened.parent, trained.run, trained.fitted
    tasks = evidence.task_results(sets, request.task)
    known = [task.child.mean for task in tasks if task.child]
    score = sum(known) / len(known) if len(known) == len(tasks) else None
    total = sum(value.numel() for value in classifier.parameters())
    inherited = sum(value.numel() for value in parent.classifier.parameters())
    return Record(
        command=job.command,
        seed=run.seed,
        method=request.method,
        run=asdict(run),
        parent={
            "source": shown(request.parent),
            "digest": parent.digest,
            "architecture": parent.arch,
            "tasks": [task.name for task in parent.classifier.tasks],
            "preprocess": parent.preprocess.show(),
            "lineage": list(parent.lineage),
            **({"files": digests.of(parent.home)} if parent.home else {}),
            **({"labels": digest(request.labels)} if request.labels else {}),
        },
        data=job.opened.found.described,
        choices=evidence.choices(run, Run(), _reasons(trained, request.run)),
        tasks=tasks,
        score=score,
        step=fitted.step,
        history=fitted.history,
        parent_history=_parent_history(parent),
        parameters={"child": total, "parent": inherited, "added": total - inherited},
        arithmetic=measuring.arithmetic_of(classifier, parent.classifier, job.opened.found),
        latency=measuring.latency_of(classifier, parent.classifier, job.opened.found),
        seconds=clock.seconds(),
        versions=versions(),
        plain=not len(classifier.extras),
        notes=(*_notes(job, tasks, score is not None, news), *evidence.surroundings(job.out)),
        asked=command_line(job.opened.request, job.out),
    )


def _reasons(trained: Trained, asked: Run) -> dict[str, str]:
    """Why settings are what they are, where neither the user nor the default says it."""
    more = trained.run.pieces > asked.pieces
    return {"precision": trained.reason, **({"pieces": "memory ran out at fewer"} if more else {})}


def _notes(job: Job, tasks: tuple[TaskResult, ...], scored: bool, news: Memory) -> tuple[str, ...]:
    found, parent = job.opened.found, job.opened.parent
    notes = evidence.warnings_of(tasks, found.described)
    if "wise" in news:
        notes.append(f"wise went {float(news['wise']['weight']):.0%} of the way from the parent to the trained child")
    if "ewc" in job.opened.plan and found.old is None and not parent.memory.get("ewc"):
        notes.append(
            "no old sample was given: the Fisher information comes from the new images and the parent's own answers"
        )
    if not scored:
        notes.append(
            "not every old task has validation images: old accuracy is unknown, "
            "the last step was kept, and agreement is a proxy"
        )
    return tuple(notes)
