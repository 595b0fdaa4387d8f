"""The training half of an extension: open what a request names, and run its method up to a step."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from taskgraft import parallel
from taskgraft.bundle import Bundle, open_parent
from taskgraft.classifier import Classifier, grow, widen
from taskgraft.data.sets import write_lists
from taskgraft.data.sources import Inputs, classes_at, gather
from taskgraft.jobs import evidence, measuring
from taskgraft.jobs.request import Request, checked
from taskgraft.loop import precision, steps
from taskgraft.loop.session import Fitted, Measured, fit_in, resolve
from taskgraft.loop.state import TrainState
from taskgraft.method import Method
from taskgraft.methods import Plan
from taskgraft.problem import Problem
from taskgraft.recall import recalled_in
from taskgraft.record import Clock, Predictions, versions
from taskgraft.search.choices import wilson
from taskgraft.settings import Run
from taskgraft.types import Once, Sources, Task, Watch

ONE_SIDED = 1.644854  # quantile of the normal distribution, 95 %
NEAR = 0.1  # of the way from guessing to no error: a parent that has come less far is none


class Opened(NamedTuple):
    """A checked request with everything that it names in memory.

    `before` is what the parent predicts on the validation images; None until it was asked.
    """

    request: Request
    plan: Plan
    parent: Bundle
    child: Classifier
    found: Inputs
    before: dict[str, Predictions] | None = None


class Job(NamedTuple):
    """One run: what is opened, by which method, written where; up to which step, sharing what with other trials."""

    opened: Opened
    method: Method
    out: Path
    cache: Path | None
    command: str
    watch: Watch
    until: int | None = None
    once: Once | None = None


class Trained(NamedTuple):
    """A run at its last step, or at the step up to which it was wanted."""

    run: Run
    reason: str  # why the precision is what it is
    fitted: Fitted
    sources: Sources
    before: dict[str, Predictions]


def open_all(request: Request, cache: Path | None, watch: Watch) -> Opened:
    """Check a request and open its parent and pictures. Raises Problem for whatever is wrong with them."""
    request, plan = checked(request)
    parent = open_parent(
        request.parent,
        arch=request.arch,
        labels=request.labels,
        wanted=request.wanted,
        task=request.parent_task,
        cache=cache,
    )
    parent.classifier.to(parallel.device())
    child = _grown(request, parent.classifier)  # says what is wrong, before pictures are read
    for line in parent.found:
        watch.say(f"parent: {line}")
    own = {task.name: task.classes for task in child.tasks}
    found = parallel.chief_first(lambda: gather(
        request.data, request.task, parent.classifier.tasks, parent.preprocess, classes=own.get(request.task),
        old=request.old, old_val=request.old_val, seed=request.run.seed, cache=cache, watch=watch,
    ))  # fmt: skip
    for task in () if request.into else parent.classifier.tasks:
        if set(task.classes) == set(found.new.tasks[0].classes):
            watch.say(
                f"the classes are those of the old task {task.name}; if they mean the same, use extend "
                f"--into {task.name}"
            )
    child = child if request.into else grow(parent.classifier, found.new.tasks[0], request.run.seed)
    return Opened(request, plan, parent, child, found)


def ask_parent(opened: Opened, watch: Watch, *, cache: Path | None = None, strict: bool = True) -> Opened:
    """What the parent predicts on the validation images, before anything is trained: once, for all that needs it.

    What its backbone makes of them is kept in `cache` for the next command.

    Raises Problem where it does no better than guessing on those of an old task, unless not `strict` or the request
    says otherwise.
    """
    opened = opened if opened.before else opened._replace(
        before=measuring.predictions(opened.parent.classifier, opened.found, recall=_recall(opened.parent, cache))
    )  # fmt: skip
    assert opened.before is not None
    for task, share in measuring.accuracies(opened.before, opened.request.task).items():
        labels = opened.before["old"].labels[task]
        count = int((labels >= 0).sum())
        watch.say(f"parent: {task} {share:.1%} on {count} validation pictures")
        guess = guessed(labels, len(opened.before["old"].classes[task]))
        if wilson(share, count, ONE_SIDED).low > guess:
            continue
        if share >= guess + NEAR * (1 - guess):
            watch.say(
                f"parent: that is not told from guessing the most frequent class, {guess:.1%}; more pictures would tell"
            )
        elif strict and opened.request.check_parent:
            raise Problem(
                f"the parent answers {share:.1%} of {count} validation pictures of {task} rightly, where guessing the "
                f"most frequent class gives {guess:.1%}: they are not shown as in its training "
                f"('{opened.parent.preprocess.show()}', {opened.parent.preprocess_from}), or --labels stand in "
                "another order, or --old-val is of something else; mend --input, --labels or --old-val, or go on with "
                "--no-parent-check (Python: check_parent=False)"
            )
    return opened


def guessed(labels: NDArray[np.int64], classes: int) -> float:
    """What always giving the most frequent class would get; where all pictures are of one class, any of `classes`."""
    counts = np.unique(labels[labels >= 0], return_counts=True)[1]
    return float(counts.max() / counts.sum()) if len(counts) > 1 else 1 / classes


def settings_of(opened: Opened) -> dict[str, Any]:
    """What must be equal for a run to be the same run."""
    request, parent = opened.request, opened.parent
    return {
        "task": request.task,
        "method": request.method,
        "run": asdict(request.run),
        "parent": parent.digest,
        "preprocess": parent.preprocess.show(),
        "data": {name: part["fingerprint"] for name, part in opened.found.described.items()},
    }


def train(job: Job, settings: dict[str, Any], clock: Clock) -> tuple[Trained, Clock]:
    """Run a job's method in its folder, from the newest checkpoint there if there is one."""
    request, parent, child, found, watch = (
        job.opened.request,
        job.opened.parent,
        job.opened.child,
        job.opened.found,
        job.watch,
    )
    child.softmax = request.run.softmax
    assert found.new.train is not None
    recall = _recall(parent, job.cache)
    before = job.opened.before or measuring.predictions(parent.classifier, found, recall=recall)

    def score(classifier: Classifier) -> float:
        now = measure(classifier)
        return sum({**now.agreement, **now.accuracy}.values()) / len({**now.agreement, **now.accuracy})

    own, views = request.run, views_shown(job.opened)
    sources = Sources(found.new.train, found.old, views, own.augment, own.seed, score, job.once, recall)
    run, reason = resolve(job.out, child, sources, request.run, job.cache, settings, job.command, watch)
    if job.until is None:  # the pictures of a search's trials are those of its choices
        parallel.told(lambda: write_lists(job.out, found.new))
    if run.softmax == "joint":
        watch.say("one softmax over all tasks: for reproduction only, since the new task pushes the old ones out")

    def measure(classifier: Classifier, recall: Once | None = None) -> Measured:
        now = measuring.predictions(classifier, found, before if measuring.unchanged(classifier) else {}, recall)
        return Measured(
            measuring.accuracies(now, request.task, before), measuring.agreements(before["new"], now["new"])
        )

    def begin() -> TrainState:
        return steps.start(child, job.method, sources, parent.memory, run)

    def measure_begun(classifier: Classifier) -> Measured:
        return measure(classifier, recall)

    def blank() -> TrainState:
        return steps.prepare(child, job.method, sources, run)

    choosing = chosen_by(job.opened, before)
    fitted = fit_in(job.out, begin, blank, job.method, sources, run, measure, choosing, watch, job.until, measure_begun)
    return Trained(fitted.run, reason, fitted, sources, before), clock.lap("training and validation")


def _recall(parent: Bundle, cache: Path | None) -> Once | None:
    """What keeps, in the cache, what follows from the parent and the pictures alone; None without a cache."""
    if cache is None:
        return None
    here = {**versions(), **precision.place(next(parent.classifier.parameters()).device)}
    about = (f"{name} {value}" for name, value in sorted({**here, **parent.options}.items()))
    return recalled_in(cache / "recalled", parent.arch, *about)


def views_shown(opened: Opened) -> int:
    """How many of a run's fixed views its epochs reach: the parent's answers to the others are never wanted."""
    assert opened.found.new.train is not None
    run, count = opened.request.run, len(opened.found.new.train.pixels)
    return min(run.views, -(-run.steps * run.batch // count))


def chosen_by(opened: Opened, before: dict[str, Predictions]) -> list[str]:
    """The tasks whose mean accuracy chooses the step; none where an old task cannot be measured."""
    request = opened.request
    measured = list(measuring.accuracies(before, request.task))
    whole = len(measured) == len(opened.parent.classifier.tasks)
    return [*measured, evidence.label_of(request.task, before["new"].classes)] if whole else []


def _grown(request: Request, parent: Classifier) -> Classifier:
    """The parent, with room for added classes; a task's classes are not known before its pictures are read."""
    if request.into:
        return widen(parent, request.task, classes_at(request.data, request.task), request.run.seed)
    if request.task in [task.name for task in parent.tasks]:
        grow(parent, Task(request.task, ("", "")), 0)
    return parent
