"""One trial of a search: an ordinary run of `extend`, up to a step. Knows nothing of samplers, queues or workers."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from taskgraft.config import TrainingConfig
from taskgraft.errors import TrainingError
from taskgraft.methods import composition, notation
from taskgraft.pipeline import evidence, fitting, measuring
from taskgraft.pipeline.fitting import Job, Opened, Trained
from taskgraft.pipeline.request import checked, command_line
from taskgraft.pipeline.tracking import tracked
from taskgraft.results.files import fingerprint
from taskgraft.results.predictions import Predictions
from taskgraft.results.record import Clock, StepMetrics
from taskgraft.training import run_folder
from taskgraft.training.trial_cache import once_in
from taskgraft.types import Callbacks, Memoize


class OutOfTime(Exception):
    """The budget ended in the middle of a trial; its last checkpoint stays."""


def attempt(
    opened: Opened,
    method: str,
    config: TrainingConfig,
    place: Path,
    until: int,
    *,
    shared: Path | None,
    cache: Path | None = None,
    deadline: float | None = None,
    track: str = "",
    callbacks: Callbacks = Callbacks(),  # noqa: B008 - immutable
) -> dict[str, Any]:
    """Train one arrangement up to a step, from its last checkpoint where it has one; what came of it as plain values.

    `old` and `new` are the accuracies at the kept step so far (agreement where old images are missing), `score` their
    mean, `path` the same at each weight of the interpolation path, `saved` the seconds that sharing in the
    folder `shared` saved.
    `deadline` is a time of this machine's steady clock. Raises OutOfTime there, and TaskgraftError for bad input.
    """
    begun, saved = time.perf_counter(), {}
    opened = _as_asked(opened, method, config)
    base: dict[str, Any] = {"method": opened.request.method, "config": asdict(config), "folder": place.name}
    once = _once(opened, shared, saved)
    try:
        with run_folder.held(place), tracked(track, place, base, _watching(callbacks, deadline)) as callbacks:
            command = command_line(opened.request, place)
            job = Job(opened, composition.build(opened.plan), place, cache, command, callbacks, until, once)
            settings = fitting.settings_of(opened)
            run_folder.examine(place, settings, resume=True)
            trained, _ = fitting.train(job, settings, Clock.start())
            found = _result(opened, trained)
    except TrainingError as error:  # such a trial is a result; anything else a mistake
        return {**base, "reason": str(error), "seconds": time.perf_counter() - begun, "saved": saved}
    return {**base, "reason": None, **found, "seconds": time.perf_counter() - begun, "saved": saved}


def standing(opened: Opened, before: dict[str, Predictions]) -> tuple[float, int, int]:
    """The parent's old accuracy (1 where agreement stands in for it), and how many images measure old and new."""
    measured = measuring.accuracies(before, opened.request.task)
    shares = {task.name: 1.0 for task in opened.parent.classifier.tasks} | measured
    new = len(before["new"].ids)
    old = [int((before["old"].labels[task] >= 0).sum()) for task in measured]
    old += [new] * (len(shares) - len(measured))
    return sum(shares.values()) / len(shares), min(old), new


def _as_asked(opened: Opened, method: str, config: TrainingConfig) -> Opened:
    request, plan = checked(replace(opened.request, method=method, config=config))
    return opened._replace(request=request, plan=plan)


def _watching(callbacks: Callbacks, deadline: float | None) -> Callbacks:
    def progress(what: str, done: int, total: int) -> None:
        callbacks.progress(what, done, total)
        if deadline is not None and what == "training" and time.monotonic() > deadline:
            raise OutOfTime

    return callbacks._replace(progress=progress)


def _once(opened: Opened, shared: Path | None, saved: dict[str, float]) -> Memoize | None:
    """What may be shared depends on the parent, the images, the seed, the views, and what the method attaches."""
    if shared is None:
        return None
    request, config = opened.request, opened.request.config
    attached = [notation.show({name: own}) for name, own in opened.plan.items() if own.build().adapt]
    key = fingerprint([
        opened.parent.digest, *(part["fingerprint"] for part in opened.found.described.values()), request.task,
        opened.parent.preprocessing.to_text(), str((config.seed, fitting.views_shown(opened), config.augment, config.softmax)),
        *attached,
    ])  # fmt: skip

    def note(name: str, seconds: float) -> None:
        saved[name] = saved.get(name, 0.0) + seconds

    return once_in(shared, key, note)


def _result(opened: Opened, trained: Trained) -> dict[str, Any]:
    label = evidence.label_of(opened.request.task, trained.before["new"].classes)
    kept = next(line for line in reversed(trained.fitted.history) if line.step == trained.fitted.step)
    old, new = _pair(kept, label)
    return {
        "step": trained.fitted.step,
        "reached": trained.fitted.state.step,
        "old": old,
        "new": new,
        "score": (old + new) / 2,
        "path": _path(opened, trained, label),
        "history": [line.model_dump(exclude_defaults=True) for line in trained.fitted.history],
    }


def _pair(line: StepMetrics, label: str) -> tuple[float, float]:
    """Mean old accuracy, with agreement for tasks that cannot be measured, and new accuracy."""
    old = {**line.agreement, **{task: share for task, share in line.accuracy.items() if task != label}}
    return sum(old.values()) / len(old), line.accuracy[label]


def _path(opened: Opened, trained: Trained, label: str) -> list[dict[str, float]]:
    """Old and new accuracy at each weight of the interpolation path, where the method has one: no training."""
    state = trained.fitted.state
    if state.step < trained.config.steps:
        return []
    found = []
    for weight, classifier in composition.interpolated(opened.plan, state.classifier, state.memory, trained.sources):
        now = measuring.predictions(classifier, opened.found)
        agreed = measuring.agreements(trained.before["new"], now["new"])
        line = StepMetrics(
            step=0, accuracy=measuring.accuracies(now, opened.request.task, trained.before), agreement=agreed
        )
        old, new = _pair(line, label)
        found.append({"weight": weight, "old": old, "new": new})
    return found
