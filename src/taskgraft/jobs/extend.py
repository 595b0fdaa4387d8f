"""The use case: parent + images of a new task + method -> a child that does both, and the evidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from taskgraft import methods
from taskgraft.bundle import Bundle, open_parent, read
from taskgraft.classifier import Classifier, grow, widen
from taskgraft.data.sources import Inputs, classes_at, gather
from taskgraft.features import balance
from taskgraft.jobs import evidence, measuring
from taskgraft.jobs.request import Request, checked
from taskgraft.loop import folder, steps
from taskgraft.loop.session import Fitted, Measured, fit_in, resolve
from taskgraft.loop.state import TrainState
from taskgraft.method import Method
from taskgraft.problem import Problem
from taskgraft.record import Clock, Line, Predictions, Record, TaskResult, load_predictions, versions
from taskgraft.settings import METHOD, Run
from taskgraft.types import Memory, Sources, Task, Watch


class Extension(NamedTuple):
    """What `extend` leaves: the child, the evidence, and where they lie."""

    bundle: Bundle
    record: Record
    predictions: dict[str, Predictions]
    out: Path


def extend(
    parent: str | Path,
    data: str | Path,
    out: str | Path,
    *,
    task: str,
    method: str = METHOD,
    run: Run = Run(),  # noqa: B008 - immutable
    old: Path | None = None,
    old_val: Sequence[Path] = (),
    arch: str | None = None,
    labels: Path | None = None,
    wanted: str | None = None,
    parent_task: str = "parent",
    into: bool = False,
    cache: Path | None = None,
    resume: bool = False,
    watch: Watch = Watch(),  # noqa: B008 - immutable
) -> Extension:
    """Extend a trained classifier with a new task, as `taskgraft extend` does; see `Request` for the arguments.

    Writes the run folder and bundle `out`; a finished run of the same request is read, not repeated. `cache` is
    where decoded pixels are kept (None = in memory only). Raises Problem for bad input before anything is written.
    """
    request = Request(
        str(parent), Path(data), task, method, run, old, tuple(old_val), arch, labels, wanted, parent_task, into
    )
    return carry_out(request, Path(out), cache=cache, resume=resume, watch=watch)


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
    request, plan = checked(request)
    parent = open_parent(
        request.parent,
        arch=request.arch,
        labels=request.labels,
        wanted=request.wanted,
        task=request.parent_task,
    )
    child = _grown(request, parent.classifier)  # says what is wrong, before pictures are read
    for line in parent.found:
        watch.say(f"parent: {line}")
    own = {task.name: task.classes for task in child.tasks}
    found = gather(
        request.data, request.task, parent.classifier.tasks, parent.preprocess, classes=own.get(request.task),
        old=request.old, old_val=request.old_val, seed=request.run.seed, cache=cache, watch=watch,
    )  # fmt: skip
    child = child if request.into else grow(parent.classifier, found.new.tasks[0], request.run.seed)
    settings = _settings(request, parent, found)
    if folder.examine(out, settings, resume) == "done":
        watch.say(f"{out} holds this run, finished; nothing was done")
        return load(out)
    with folder.held(out):
        job = _Job(request, methods.build(plan), parent, child, found, out, cache, command, watch)
        try:
            return _train(job, settings, clock.lap("reading"))
        except Problem:
            folder.withdraw(out)
            raise


def load(out: Path) -> Extension:
    """Read a finished run. Raises Problem where there is none."""
    try:
        record = Record.model_validate_json((out / "record.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Problem(
            f"{out} holds no finished run ({type(error).__name__}); give the OUT folder of an extend"
        ) from error
    return Extension(read(out), record, load_predictions(out / "predictions.npz"), out)


def _grown(request: Request, parent: Classifier) -> Classifier:
    """The parent, with room for added classes; a task's classes are not known before its pictures are read."""
    if request.into:
        return widen(parent, request.task, classes_at(request.data, request.task), request.run.seed)
    if request.task in [task.name for task in parent.tasks]:
        grow(parent, Task(request.task, ("", "")), 0)
    return parent


class _Job(NamedTuple):
    request: Request
    method: Method
    parent: Bundle
    child: Classifier
    found: Inputs
    out: Path
    cache: Path | None
    command: str
    watch: Watch


def _train(job: _Job, settings: dict[str, Any], clock: Clock) -> Extension:
    request, parent, child, found, watch = job.request, job.parent, job.child, job.found, job.watch
    child.softmax = request.run.softmax
    assert found.new.train is not None
    before = measuring.predictions(parent.classifier, found)

    def score(classifier: Classifier) -> float:
        now = measure(classifier)
        return sum({**now.agreement, **now.accuracy}.values()) / len({**now.agreement, **now.accuracy})

    sources = Sources(found.new.train, found.old, request.run.views, request.run.augment, request.run.seed, score)
    run, reason = resolve(job.out, child, sources, request.run, job.cache, settings, job.command)
    for task, share in measuring.accuracies(before, request.task).items():
        count = int((before["old"].labels[task] >= 0).sum())
        watch.say(f"parent: {task} {share:.1%} on {count} validation pictures")
    if run.softmax == "joint":
        watch.say("one softmax over all tasks: for reproduction only, since the new task pushes the old ones out")

    def measure(classifier: Classifier) -> Measured:
        now = measuring.predictions(classifier, found, before if measuring.unchanged(classifier) else {})
        return Measured(
            measuring.accuracies(now, request.task, before), measuring.agreements(before["new"], now["new"])
        )

    def begin() -> TrainState:
        return steps.start(child, job.method, sources, parent.memory, run)

    def blank() -> TrainState:
        return steps.prepare(child, job.method, sources, run)

    measured = list(measuring.accuracies(before, request.task))
    whole = len(measured) == len(parent.classifier.tasks)
    choosing = [*measured, evidence.label_of(request.task, before["new"].classes)] if whole else []
    fitted = fit_in(job.out, begin, blank, job.method, sources, run, measure, choosing, watch)
    clock = clock.lap("training and validation")
    return _finish(job, run, reason, fitted, sources, before, clock)


def _finish(
    job: _Job,
    run: Run,
    reason: str,
    fitted: Fitted,
    sources: Sources,
    before: dict[str, Predictions],
    clock: Clock,
) -> Extension:
    """Let the method finish, measure once more, write the bundle; the run counts as done after that."""
    request = job.request
    classifier, memory = fitted.state.classifier, fitted.state.memory
    kept, news = job.parent.memory, {}
    if job.method.finish:
        classifier, news = job.method.finish(classifier, memory, sources)
        kept = {**kept, **{name: memory for name, memory in news.items() if memory}}
    balance(classifier, sources)
    after = measuring.predictions(classifier, job.found)
    sets = after | {f"{name}-parent": value for name, value in before.items()} | measuring.tested(classifier, job.found)
    clock = clock.lap("finishing")
    record = _record(job, run, reason, fitted, classifier, sets, clock, news)
    bundle = job.parent._replace(
        classifier=classifier,
        memory=kept,
        source=str(job.out),
        home=job.out,
        lineage=(*job.parent.lineage, evidence.ancestor(record)),
        cards=measuring.cards(job.parent.cards, job.found, sets, request.task),
    )
    evidence.publish(job.out, bundle, record, sets, job.found.new)
    return Extension(bundle, record, sets, job.out)


def _settings(request: Request, parent: Bundle, found: Inputs) -> dict[str, Any]:
    """What must be equal for a run to be the same run."""
    fingerprints = {name: part["fingerprint"] for name, part in found.described.items()}
    return {
        "task": request.task,
        "method": request.method,
        "run": asdict(request.run),
        "parent": parent.digest,
        "preprocess": parent.preprocess.show(),
        "data": fingerprints,
    }


def _parent_history(parent: Bundle) -> tuple[Line, ...]:
    """The parent's own training, where its bundle has it."""
    file = parent.home / "metrics.jsonl" if parent.home else None
    return tuple(folder.history(parent.home)) if parent.home and file and file.exists() else ()


def _record(
    job: _Job,
    run: Run,
    reason: str,
    fitted: Fitted,
    classifier: Classifier,
    sets: dict[str, Predictions],
    clock: Clock,
    news: Memory,
) -> Record:
    request, parent = job.request, job.parent
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
            "source": request.parent,
            "digest": parent.digest,
            "architecture": parent.arch,
            "tasks": [task.name for task in parent.classifier.tasks],
            "preprocess": parent.preprocess.show(),
            "lineage": list(parent.lineage),
        },
        data=job.found.described,
        choices=evidence.choices(run, Run(), {"precision": reason}),
        tasks=tasks,
        score=score,
        step=fitted.step,
        history=fitted.history,
        parent_history=_parent_history(parent),
        parameters={"child": total, "parent": inherited, "added": total - inherited},
        arithmetic=measuring.arithmetic_of(classifier, parent.classifier, job.found),
        seconds=clock.seconds(),
        versions=versions(),
        plain=not len(classifier.extras),
        notes=_notes(job, tasks, score is not None, news),
    )


def _notes(job: _Job, tasks: tuple[TaskResult, ...], scored: bool, news: Memory) -> tuple[str, ...]:
    notes = evidence.warnings_of(tasks, job.found.described)
    if "wise" in news:
        notes.append(f"wise went {float(news['wise']['weight']):.0%} of the way from the parent to the trained child")
    if "ewc" in methods.parse(job.request.method) and job.found.old is None and not job.parent.memory.get("ewc"):
        notes.append(
            "no old sample was given: the Fisher information comes from the new images and the parent's own answers"
        )
    if not scored:
        notes.append(
            "not every old task has validation images: old accuracy is unknown, "
            "the last step was kept, and agreement is a proxy"
        )
    return tuple(notes)
