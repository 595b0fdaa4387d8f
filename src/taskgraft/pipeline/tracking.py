"""Experiment trackers: TensorBoard, MLflow and Weights & Biases, by Accelerate.

A tracker receives metrics that have been written to disk already. It runs in a thread of its own, so one that is slow,
down or broken costs a warning and never a step.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from taskgraft.errors import InputError, require
from taskgraft.results.record import StepMetrics
from taskgraft.types import Callbacks

TRACKERS = ("tensorboard", "mlflow", "wandb")
JOIN_TIMEOUT = 10.0  # seconds that the end of a run waits for a tracker
MAX_PENDING = 1000  # lines that may wait; a tracker that is further behind misses some


def check(name: str) -> None:
    """Check a tracker's name; an empty one is no tracker.

    Raises:
        InputError: there is no such tracker.
        MissingDependency: it is not installed.
    """
    if name and name not in TRACKERS:
        raise InputError(f"--track {name!r} does not exist; available: {', '.join(TRACKERS)}")
    if name:
        packages = ("tensorboard",) if name == "tensorboard" else ()
        require("track", "accelerate", *packages, what=f"--track {name}")
        require("", name, what=f"--track {name}")


@contextmanager
def tracked(name: str, out: Path, settings: Mapping[str, Any], callbacks: Callbacks) -> Iterator[Callbacks]:
    """Yield callbacks whose `on_metrics` also logs to a tracker.

    Args:
        name: One of `TRACKERS`; with an empty name the callbacks remain as they are.
        out: Run folder.
        settings: Hyperparameters of the run.
        callbacks: Callbacks of the run.

    Raises:
        TaskgraftError: as `check` raises it.
    """
    check(name)
    if not name:
        yield callbacks
        return
    lines: queue.Queue[StepMetrics | None] = queue.Queue(MAX_PENDING)
    thread = threading.Thread(target=_log, args=(lines, name, out, dict(settings), callbacks.info), daemon=True)

    def on_metrics(line: StepMetrics) -> None:
        callbacks.on_metrics(line)
        if not thread.ident:  # not before the run has its folder
            thread.start()
        if not lines.full():
            lines.put_nowait(line)

    try:
        yield callbacks._replace(on_metrics=on_metrics)
    finally:
        if not lines.full():
            lines.put_nowait(None)
        if thread.ident:
            thread.join(JOIN_TIMEOUT)
        if thread.is_alive():
            callbacks.info(f"{name} did not finish within {JOIN_TIMEOUT:g} s; metrics.jsonl is complete")


def _log(
    lines: queue.Queue[StepMetrics | None], name: str, out: Path, settings: dict[str, Any], warn: Callable[[str], None]
) -> None:
    try:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        tracker = LOGGER_TYPE_TO_CLASS[name](**_tracker_arguments(name, out))
        tracker.start()
        tracker.store_init_configuration({key: str(value) for key, value in settings.items()})
        while (line := lines.get()) is not None:
            tracker.log(_flatten(line), step=line.step)
        tracker.finish()
    except Exception as error:  # a broken tracker must not end the run
        reason = (str(error).splitlines() or [""])[0][:160]
        warn(f"{name} failed and is disabled: {type(error).__name__}: {reason}; metrics.jsonl is complete")


def _tracker_arguments(name: str, out: Path) -> dict[str, str]:
    if name == "tensorboard":
        return {"run_name": "tensorboard", "logging_dir": str(out)}
    title = "/".join(out.resolve().parts[-2:])
    return {"run_name": title} if name == "wandb" else {"experiment_name": "taskgraft", "run_name": title}


def _flatten(line: StepMetrics) -> dict[str, float]:
    values = {f"loss/{name}": value for name, value in line.terms.items()}
    values |= {f"accuracy/{task}": value for task, value in line.accuracy.items()}
    values |= {f"agreement/{task}": value for task, value in line.agreement.items()}
    return values | ({} if line.lr is None else {"lr": line.lr})
