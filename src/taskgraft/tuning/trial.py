"""One trial of a search: an ordinary `extend` run, trained up to a rung. Knows nothing of samplers or executors."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from taskgraft.config import TrainingConfig
from taskgraft.errors import TrainingError
from taskgraft.methods import composition, notation
from taskgraft.pipeline import evidence, fitting, measuring
from taskgraft.pipeline.fitting import Opened, Trained
from taskgraft.pipeline.request import Request, checked, command_line
from taskgraft.pipeline.tracking import tracked
from taskgraft.results.files import fingerprint
from taskgraft.results.record import Clock, StepMetrics
from taskgraft.results.search import RungResult
from taskgraft.training import run_folder
from taskgraft.training.trial_cache import once_in
from taskgraft.types import Callbacks, Memoize


class _OutOfTime(Exception):
    """The budget ended while a trial was training; its last checkpoint remains."""


@dataclass(frozen=True)
class Context:
    """What all trials of a search have in common, as values that can be sent to another machine.

    Attributes:
        request: The extension.
        out: Folder of the search.
        cache: Cache of decoded pixels; None = in memory only.
        share: Whether trials compute once for all what they have in common.
        track: Experiment tracker; empty = none.
    """

    request: Request
    out: Path
    cache: Path | None
    share: bool
    track: str


class Job(NamedTuple):
    """Train a trial up to a step."""

    trial: int
    method: str
    config: TrainingConfig
    until: int


def trial_folder(out: Path, number: int) -> Path:
    """Return the run folder of a trial."""
    return out / "trials" / f"{number:04d}"


def train_trial(
    context: Context, job: Job, opened: Opened, deadline: float | None, callbacks: Callbacks
) -> RungResult | None:
    """Train a trial up to a step, from its last checkpoint where it has one.

    Args:
        context: What all trials have in common.
        job: The trial and the step.
        opened: The opened extension; its method and training settings are replaced by those of the trial.
        deadline: When to stop, on this machine's monotonic clock; None = never.
        callbacks: Progress callbacks.

    Returns:
        The result so far, also where training failed; None if the deadline has passed.

    Raises:
        TaskgraftError: the input is wrong.
    """
    start, saved = time.perf_counter(), {}
    request, plan = checked(replace(opened.request, method=job.method, config=job.config))
    opened, folder = opened._replace(request=request, plan=plan), trial_folder(context.out, job.trial)
    settings: dict[str, Any] = {"method": request.method, "config": asdict(job.config), "folder": folder.name}
    callbacks = _stop_at(deadline, callbacks)
    achieved: dict[str, Any]
    try:
        with run_folder.held(folder), tracked(context.track, folder, settings, callbacks) as callbacks:
            identity, memoize = fitting.settings_of(opened), _memoize(opened, context, saved)
            run_folder.examine(folder, identity, resume=True)
            run = fitting.Job(
                opened, composition.build(plan), folder, context.cache, command_line(request, folder), callbacks,
                job.until, memoize,
            )  # fmt: skip
            trained, _ = fitting.train(run, identity, Clock.start())
            achieved = _measure(opened, trained)
    except TrainingError as error:
        achieved = {"reason": str(error)}
    except _OutOfTime:
        return None
    return RungResult(**settings, **achieved, seconds=time.perf_counter() - start, saved=saved)


def _stop_at(deadline: float | None, callbacks: Callbacks) -> Callbacks:
    def progress(what: str, done: int, total: int) -> None:
        callbacks.progress(what, done, total)
        if deadline is not None and what == "training" and time.monotonic() > deadline:
            raise _OutOfTime

    return callbacks._replace(progress=progress)


def _memoize(opened: Opened, context: Context, saved: dict[str, float]) -> Memoize | None:
    """What is shared depends on the parent, the images, the seed, the views, and the modules that the method adds."""
    if not context.share:
        return None
    request, config = opened.request, opened.request.config
    adapting = [notation.show({name: settings}) for name, settings in opened.plan.items() if settings.build().adapt]
    key = fingerprint([
        opened.parent.digest, *(part["fingerprint"] for part in opened.found.described.values()), request.task,
        opened.parent.preprocessing.to_text(),
        str((config.seed, fitting.views_shown(opened), config.augment, config.softmax)), *adapting,
    ])  # fmt: skip

    def note(name: str, seconds: float) -> None:
        saved[name] = saved.get(name, 0.0) + seconds

    return once_in(context.out / "shared", key, note)


def _measure(opened: Opened, trained: Trained) -> dict[str, Any]:
    label = evidence.label_of(opened.request.task, trained.before["new"].classes)
    best = next(line for line in reversed(trained.fitted.history) if line.step == trained.fitted.step)
    old, new = _old_and_new(best, label)
    return {
        "reached": trained.fitted.state.step,
        "step": trained.fitted.step,
        "old": old,
        "new": new,
        "score": (old + new) / 2,
        "path": tuple(_interpolation_path(opened, trained, label)),
    }


def _old_and_new(line: StepMetrics, label: str) -> tuple[float, float]:
    """Return the mean old accuracy, with agreement for tasks that cannot be measured, and the new accuracy."""
    old = {**line.agreement, **{task: value for task, value in line.accuracy.items() if task != label}}
    return sum(old.values()) / len(old), line.accuracy[label]


def _interpolation_path(opened: Opened, trained: Trained, label: str) -> list[dict[str, float]]:
    """Return old and new accuracy at each weight that a completely trained child can be interpolated with."""
    if trained.fitted.state.step < trained.config.steps:
        return []
    state, path = trained.fitted.state, []
    for weight, classifier in composition.interpolated(opened.plan, state.classifier, state.memory, trained.sources):
        predictions = measuring.predictions(classifier, opened.found)
        line = StepMetrics(
            step=0,
            accuracy=measuring.accuracies(predictions, opened.request.task, trained.before),
            agreement=measuring.agreements(trained.before["new"], predictions["new"]),
        )
        old, new = _old_and_new(line, label)
        path.append({"weight": weight, "old": old, "new": new})
    return path
