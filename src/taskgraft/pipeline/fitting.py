"""The training half of an extension: open what a request names, and run its method up to a step."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from taskgraft import distributed
from taskgraft.bundle import Bundle, open_parent
from taskgraft.config import TrainingConfig
from taskgraft.data.dataset import write_split_lists
from taskgraft.data.task_images import TaskData, load_task_data, read_class_names
from taskgraft.errors import InputError
from taskgraft.methods.protocol import Method, Plan
from taskgraft.metrics import wilson_interval
from taskgraft.models.classifier import Classifier, grow, widen
from taskgraft.models.tensor_cache import memoize_in
from taskgraft.pipeline import evidence, measuring
from taskgraft.pipeline.request import Request, checked
from taskgraft.results.predictions import Predictions
from taskgraft.results.record import Clock, versions
from taskgraft.training import loop, precision
from taskgraft.training.checkpoints import TrainState
from taskgraft.training.trainer import Fitted, Measured, fit_in, resolve
from taskgraft.types import Callbacks, Memoize, Task, TrainingData

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
    found: TaskData
    before: dict[str, Predictions] | None = None


class Job(NamedTuple):
    """One run: what is opened, by which method, written where; up to which step, sharing what with other trials."""

    opened: Opened
    method: Method
    out: Path
    cache: Path | None
    command: str
    callbacks: Callbacks
    until: int | None = None
    once: Memoize | None = None


class Trained(NamedTuple):
    """A run at its last step, or at the step up to which it was wanted."""

    config: TrainingConfig
    reason: str  # why the precision is what it is
    fitted: Fitted
    sources: TrainingData
    before: dict[str, Predictions]


def open_all(request: Request, cache: Path | None, callbacks: Callbacks) -> Opened:
    """Check a request and open its parent and images. Raises TaskgraftError for whatever is wrong with them."""
    request, plan = checked(request)
    parent = open_parent(
        request.parent,
        arch=request.arch,
        labels=request.labels,
        preprocessing=request.preprocessing,
        task=request.parent_task,
        cache=cache,
    )
    parent.classifier.to(distributed.device())
    child = _grown(request, parent.classifier)  # says what is wrong, before images are read
    for line in parent.notes:
        callbacks.info(f"parent: {line}")
    own = {task.name: task.classes for task in child.tasks}
    found = distributed.main_process_first(lambda: load_task_data(
        request.data, request.task, parent.classifier.tasks, parent.preprocessing, classes=own.get(request.task),
        old=request.old, old_val=request.old_val, seed=request.config.seed, cache=cache, callbacks=callbacks,
    ))  # fmt: skip
    for task in () if request.into else parent.classifier.tasks:
        if set(task.classes) == set(found.new.tasks[0].classes):
            callbacks.info(
                f"the classes are those of the old task {task.name}; if they mean the same, use extend "
                f"--into {task.name}"
            )
    child = child if request.into else grow(parent.classifier, found.new.tasks[0], request.config.seed)
    return Opened(request, plan, parent, child, found)


def ask_parent(opened: Opened, callbacks: Callbacks, *, cache: Path | None = None, strict: bool = True) -> Opened:
    """What the parent predicts on the validation images, before anything is trained: once, for all that needs it.

    What its backbone makes of them is kept in `cache` for the next command.

    Raises TaskgraftError where it does no better than guessing on those of an old task, unless not `strict` or the request
    says otherwise.
    """
    opened = opened if opened.before else opened._replace(
        before=measuring.predictions(opened.parent.classifier, opened.found, recall=_recall(opened.parent, cache))
    )  # fmt: skip
    assert opened.before is not None
    for task, share in measuring.accuracies(opened.before, opened.request.task).items():
        labels = opened.before["old"].labels[task]
        count = int((labels >= 0).sum())
        callbacks.info(f"parent: {task} {share:.1%} on {count} validation images")
        guess = guessed(labels, len(opened.before["old"].classes[task]))
        if wilson_interval(share, count, ONE_SIDED).low > guess:
            continue
        if share >= guess + NEAR * (1 - guess):
            callbacks.info(
                f"parent: that is not told from guessing the most frequent class, {guess:.1%}; more images would tell"
            )
        elif strict and opened.request.check_parent:
            raise InputError(
                f"the parent answers {share:.1%} of {count} validation images of {task} rightly, where guessing the "
                f"most frequent class gives {guess:.1%}: they are not shown as in its training "
                f"('{opened.parent.preprocessing.to_text()}', {opened.parent.preprocessing_source}), or --labels stand in "
                "another order, or --old-val is of something else; mend --preprocessing, --labels or --old-val, or go on with "
                "--no-parent-check (Python: check_parent=False)"
            )
    return opened


def guessed(labels: NDArray[np.int64], classes: int) -> float:
    """What always giving the most frequent class would get; where all images are of one class, any of `classes`."""
    counts = np.unique(labels[labels >= 0], return_counts=True)[1]
    return float(counts.max() / counts.sum()) if len(counts) > 1 else 1 / classes


def settings_of(opened: Opened) -> dict[str, Any]:
    """What must be equal for a run to be the same run."""
    request, parent = opened.request, opened.parent
    return {
        "task": request.task,
        "method": request.method,
        "config": asdict(request.config),
        "parent": parent.digest,
        "preprocessing": parent.preprocessing.to_text(),
        "data": {name: part["fingerprint"] for name, part in opened.found.described.items()},
    }


def train(job: Job, settings: dict[str, Any], clock: Clock) -> tuple[Trained, Clock]:
    """Run a job's method in its folder, from the newest checkpoint there if there is one."""
    request, parent, child, found, callbacks = (
        job.opened.request,
        job.opened.parent,
        job.opened.child,
        job.opened.found,
        job.callbacks,
    )
    child.softmax = request.config.softmax
    assert found.new.train is not None
    recall = _recall(parent, job.cache)
    before = job.opened.before or measuring.predictions(parent.classifier, found, recall=recall)

    def score(classifier: Classifier) -> float:
        now = measure(classifier)
        return sum({**now.agreement, **now.accuracy}.values()) / len({**now.agreement, **now.accuracy})

    own, views = request.config, views_shown(job.opened)
    sources = TrainingData(found.new.train, found.old, views, own.augment, own.seed, score, job.once, recall)
    config, reason = resolve(job.out, child, sources, request.config, job.cache, settings, job.command, callbacks)
    if job.until is None:  # the images of a search's trials are those of its choices
        distributed.broadcast(lambda: write_split_lists(job.out, found.new))
    if config.softmax == "joint":
        callbacks.info("one softmax over all tasks: for reproduction only, since the new task pushes the old ones out")

    def measure(classifier: Classifier, recall: Memoize | None = None) -> Measured:
        now = measuring.predictions(classifier, found, before if measuring.unchanged(classifier) else {}, recall)
        return Measured(
            measuring.accuracies(now, request.task, before), measuring.agreements(before["new"], now["new"])
        )

    def begin() -> TrainState:
        return loop.start(child, job.method, sources, parent.memory, config)

    def measure_begun(classifier: Classifier) -> Measured:
        return measure(classifier, recall)

    def blank() -> TrainState:
        return loop.prepare(child, job.method, sources, config)

    choosing = chosen_by(job.opened, before)
    fitted = fit_in(
        job.out, begin, blank, job.method, sources, config, measure, choosing, callbacks, job.until, measure_begun
    )
    return Trained(fitted.config, reason, fitted, sources, before), clock.lap("training and validation")


def _recall(parent: Bundle, cache: Path | None) -> Memoize | None:
    """What keeps, in the cache, what follows from the parent and the images alone; None without a cache."""
    if cache is None:
        return None
    here = {**versions(), **precision.place(next(parent.classifier.parameters()).device)}
    about = (f"{name} {value}" for name, value in sorted({**here, **parent.model_args}.items()))
    return memoize_in(cache / "recalled", parent.arch, *about)


def views_shown(opened: Opened) -> int:
    """How many of a run's fixed views its epochs reach: the parent's answers to the others are never wanted."""
    assert opened.found.new.train is not None
    config, count = opened.request.config, len(opened.found.new.train.pixels)
    return min(config.views, -(-config.steps * config.batch_size // count))


def chosen_by(opened: Opened, before: dict[str, Predictions]) -> list[str]:
    """The tasks whose mean accuracy chooses the step; none where an old task cannot be measured."""
    request = opened.request
    measured = list(measuring.accuracies(before, request.task))
    whole = len(measured) == len(opened.parent.classifier.tasks)
    return [*measured, evidence.label_of(request.task, before["new"].classes)] if whole else []


def _grown(request: Request, parent: Classifier) -> Classifier:
    """The parent, with room for added classes; a task's classes are not known before its images are read."""
    if request.into:
        return widen(parent, request.task, read_class_names(request.data, request.task), request.config.seed)
    if request.task in [task.name for task in parent.tasks]:
        grow(parent, Task(request.task, ("", "")), 0)
    return parent
