"""Experiment trackers beside the run's own files: TensorBoard, MLflow, Weights & Biases, through Accelerate's.

A tracker gets what is on disk already. It works in a thread of its own, so one that is slow, down or broken costs a
line of warning and never a step.
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
PATIENCE = 10.0  # seconds that the end of a run waits for a tracker
ROOM = 1000  # lines that may wait; a tracker that is further behind misses some


def check(name: str) -> str:
    """The tracker's name; raises TaskgraftError for one that does not exist or is not installed."""
    if name and name not in TRACKERS:
        raise InputError(f"--track {name!r} does not exist; give {', '.join(TRACKERS)}")
    if name:
        own = ("tensorboard",) if name == "tensorboard" else ()
        require("track", "accelerate", *own, what=f"--track {name}")
        require("", name, what=f"--track {name}")
    return name


@contextmanager
def tracked(name: str, out: Path, settings: Mapping[str, Any], callbacks: Callbacks) -> Iterator[Callbacks]:
    """A watch that also tells a tracker every line of the metrics; the watch itself where `name` is empty."""
    if not check(name):
        yield callbacks
        return
    lines: queue.Queue[StepMetrics | None] = queue.Queue(ROOM)
    thread = threading.Thread(target=_told, args=(lines, name, out, dict(settings), callbacks.info), daemon=True)

    def logged(line: StepMetrics) -> None:
        callbacks.on_metrics(line)
        if not thread.ident:  # not before the run has its folder
            thread.start()
        if not lines.full():
            lines.put_nowait(line)

    try:
        yield callbacks._replace(on_metrics=logged)
    finally:
        if not lines.full():
            lines.put_nowait(None)
        if thread.ident:
            thread.join(PATIENCE)
        if thread.is_alive():
            callbacks.info(f"{name} did not take everything within {PATIENCE:g} s; metrics.jsonl has it all")


def _told(
    lines: queue.Queue[StepMetrics | None], name: str, out: Path, settings: dict[str, Any], say: Callable[[str], None]
) -> None:
    try:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        tracker = LOGGER_TYPE_TO_CLASS[name](**_place(name, out))
        tracker.start()
        tracker.store_init_configuration({key: str(value) for key, value in settings.items()})
        while (line := lines.get()) is not None:
            tracker.log(_values(line), step=line.step)
        tracker.finish()
    except Exception as error:  # whatever a tracker does, the run goes on
        reason = (str(error).splitlines() or [""])[0][:160]
        say(f"{name} failed and is left out: {type(error).__name__}: {reason}; metrics.jsonl has everything")


def _place(name: str, out: Path) -> dict[str, str]:
    """Where a tracker keeps a run, or what it calls it."""
    if name == "tensorboard":
        return {"run_name": "tensorboard", "logging_dir": str(out)}
    title = "/".join(out.resolve().parts[-2:])
    return {"run_name": title} if name == "wandb" else {"experiment_name": "taskgraft", "run_name": title}


def _values(line: StepMetrics) -> dict[str, float]:
    found = {f"loss/{name}": value for name, value in line.terms.items()}
    found |= {f"accuracy/{task}": value for task, value in line.accuracy.items()}
    found |= {f"agreement/{task}": value for task, value in line.agreement.items()}
    return found | ({} if line.lr is None else {"lr": line.lr})
