"""One trial of a search: an ordinary `extend` run, trained up to a rung. Knows nothing of samplers or executors."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from taskgraft.config import TrainingConfig
from taskgraft.errors import TrainingError
from taskgraft.methods import composition, notation
from taskgraft.pipeline import fitting
from taskgraft.pipeline.opening import Opened, change_method
from taskgraft.pipeline.request import Request
from taskgraft.pipeline.tracking import tracked
from taskgraft.results.files import fingerprint
from taskgraft.results.search import RungResult
from taskgraft.training import run_folder
from taskgraft.training.trainer import Evaluation, Fitted
from taskgraft.training.trial_cache import build_trial_cache
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
    opened, folder = change_method(opened, job.method, job.config), trial_folder(context.out, job.trial)
    settings: dict[str, Any] = {"method": opened.method, "config": asdict(job.config), "folder": folder.name}
    callbacks = _stop_at(deadline, callbacks)
    achieved: dict[str, Any]
    try:
        with run_folder.lock(folder), tracked(context.track, folder, settings, callbacks) as callbacks:
            run_folder.inspect(folder, opened.list_settings(), resume=True)
            fitted = fitting.fit(
                opened, folder, cache=context.cache, command=opened.request.build_command(folder), callbacks=callbacks,
                until=job.until, trial_cache=_memoize(opened, context, saved),
            )  # fmt: skip
            achieved = _measure(opened, fitted)
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
        opened.parent.digest, *(part["fingerprint"] for part in opened.images.described.values()), request.task,
        opened.parent.preprocessing.to_text(),
        str((config.seed, opened.views, config.augment, config.softmax)), *adapting,
    ])  # fmt: skip

    def note(name: str, seconds: float) -> None:
        saved[name] = saved.get(name, 0.0) + seconds

    return build_trial_cache(context.out / "shared", key, note)


def _measure(opened: Opened, fitted: Fitted) -> dict[str, Any]:
    best = next(line for line in reversed(fitted.history) if line.step == fitted.step)
    old, new = _old_and_new(opened, Evaluation(best.accuracy, best.agreement))
    return {
        "reached": fitted.state.step,
        "step": fitted.step,
        "old": old,
        "new": new,
        "score": (old + new) / 2,
        "path": tuple(_interpolation_path(opened, fitted)),
    }


def _old_and_new(opened: Opened, evaluation: Evaluation) -> tuple[float, float]:
    """Return the mean old accuracy, with agreement for tasks that cannot be measured, and the new accuracy."""
    accuracy = dict(evaluation.accuracy)
    new = accuracy.pop(opened.result_name)
    old = {**evaluation.agreement, **accuracy}
    return sum(old.values()) / len(old), new


def _interpolation_path(opened: Opened, fitted: Fitted) -> list[dict[str, float]]:
    """Return old and new accuracy at each weight that a completely trained child can be interpolated with."""
    if fitted.state.step < fitted.config.steps:
        return []
    state, path = fitted.state, []
    for weight, classifier in composition.interpolated(opened.plan, state.classifier, state.memory, fitted.sources):
        old, new = _old_and_new(opened, fitting.evaluate(opened, classifier))
        path.append({"weight": weight, "old": old, "new": new})
    return path
