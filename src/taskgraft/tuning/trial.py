"""One trial of a search: an ordinary `extend` run, trained up to a rung, and what trials share."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from taskgraft.config import TrainingConfig
from taskgraft.errors import TrainingError
from taskgraft.methods import composition, notation
from taskgraft.pipeline import fitting
from taskgraft.pipeline.opening import Opened, change_method
from taskgraft.pipeline.request import Request
from taskgraft.pipeline.tracking import tracked
from taskgraft.results.files import atomic, fingerprint
from taskgraft.results.search import RungResult
from taskgraft.training import run_folder
from taskgraft.training.trainer import Evaluation, Fitted
from taskgraft.types import Callbacks, Memoize, Params

SECONDS = "seconds"  # in the header of a shared file: how long computing it took


class _OutOfTime(Exception):
    """The budget ended while a trial was training; its last checkpoint remains."""


@dataclass(frozen=True)
class Context:
    """What all trials of a search have in common, as values that can be sent to another machine.

    Attributes:
        request: The extension.
        out: Folder of the search.
        cache: Cache of decoded pixels; None = in memory only.
        share: Whether trials share what they compute alike.
        track: Experiment tracker; empty = none.
        decoding_threads: Threads that decode images in each worker; 0 = one for each core.
    """

    request: Request
    out: Path
    cache: Path | None
    share: bool
    track: str
    decoding_threads: int = 0


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

    def progress(what: str, done: int, total: int) -> None:
        callbacks.progress(what, done, total)
        if deadline is not None and what == "training" and time.monotonic() > deadline:
            raise _OutOfTime

    def on_hit(name: str, seconds: float) -> None:
        saved[name] = saved.get(name, 0.0) + seconds

    trial_cache = build_trial_cache(context.out / "shared", _shared_key(opened), on_hit) if context.share else None
    outcome: dict[str, Any]
    try:
        with (
            run_folder.lock(folder),
            tracked(context.track, folder, settings, callbacks._replace(progress=progress)) as trial_callbacks,
        ):
            run_folder.inspect(folder, opened.list_settings(), resume=True)
            fitted = fitting.fit(
                opened, folder, cache=context.cache, command=opened.request.build_command(folder),
                callbacks=trial_callbacks, until=job.until, trial_cache=trial_cache,
            )  # fmt: skip
            outcome = _measure(opened, fitted)
    except TrainingError as error:
        outcome = {"reason": str(error)}
    except _OutOfTime:
        return None
    return RungResult(**settings, **outcome, seconds=time.perf_counter() - start, saved=saved)


def build_trial_cache(folder: Path, key: str, on_hit: Callable[[str, float], None]) -> Memoize:
    """Build a function that computes tensors the first time and maps the file afterwards.

    Args:
        folder: Where the files are; it is created.
        key: What the tensors depend on besides their name.
        on_hit: Called with the name and the seconds saved whenever a file is used.

    Returns:
        A function of a name and a function that computes the tensors. Of two processes that call it at the same time,
        one waits for the other.
    """

    def memoize(name: str, make: Callable[[], Params]) -> Params:
        file = folder / f"{fingerprint([key, name])[:32]}.safetensors"
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock"):
            for leftover in folder.glob(f".{file.name}.*"):  # of a killed process; under the lock none is alive
                leftover.unlink(missing_ok=True)
            cached = _read_shared(file)
            if cached:
                tensors, seconds = cached
                on_hit(name, seconds)
                return tensors
            start = time.perf_counter()
            tensors = make()
            header = {"name": name, SECONDS: f"{time.perf_counter() - start:.3f}"}
            with atomic(file) as partial:
                save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, partial, header)
        return tensors

    return memoize


def _read_shared(file: Path) -> tuple[Params, float] | None:
    """Return the tensors of a file and the seconds that they took; None where it is missing or damaged."""
    try:
        with safe_open(file, "pt") as opened:
            seconds = float(opened.metadata()[SECONDS])
            return {name: opened.get_tensor(name) for name in opened.keys()}, seconds  # noqa: SIM118 - no dictionary
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None


def _shared_key(opened: Opened) -> str:
    """Identify the parent, the images, the seed, the views, and the modules that the method adds."""
    request, config = opened.request, opened.request.config
    adapting = [notation.show({name: settings}) for name, settings in opened.plan.items() if settings.build().adapt]
    return fingerprint([
        opened.parent.digest, *(data["fingerprint"] for data in opened.images.described.values()), request.task,
        opened.parent.preprocessing.to_text(),
        str((config.seed, opened.views, config.augment, config.softmax)), *adapting,
    ])  # fmt: skip


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
