"""What a start is made of: a command of taskgraft up to its first training step, timed part by part.

python -m benchmarks.speed.parts BEGUN COMMAND …

BEGUN is `time.monotonic()` where the process was started; COMMAND is what `taskgraft` is given. The parts are timed
from outside, around the functions that they are, and exclude each other. Prints a line of JSON after the first step.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

# Part, module, function, the modules that have bound it by name. What is in none of them is "rest".
PARTS = (
    ("checkpoint", "taskgraft.bundle.loaders", "open_parent", ("taskgraft.bundle", "taskgraft.pipeline.opening")),
    ("images", "taskgraft.data.task_images", "load_task_data", ("taskgraft.pipeline.opening",)),
    ("answers on validation images", "taskgraft.pipeline.measuring", "predict_validation", ()),
    ("choice of precision", "taskgraft.training.precision", "choose_precision", ()),
    ("adaptation", "taskgraft.training.loop", "_adapt", ()),
    ("head's warm-up", "taskgraft.training.loop", "train_head", ()),
    ("first checkpoint", "taskgraft.training.checkpoints", "save", ()),
    ("first step", "taskgraft.training.loop", "train_step", ()),
)


class _Reached(BaseException):
    """The first step is done."""


class Laps:
    """Seconds by part; time inside an inner part is not the outer one's."""

    def __init__(self, begun: float) -> None:
        """Everything since `begun` is the imports' until the first `switch`."""
        self.last, self.stack, self.taken = begun, ["imports"], dict[str, float]()

    def switch(self) -> None:
        """Count the time since the last switch to the part on top."""
        now = time.monotonic()
        self.taken[self.stack[-1]] = self.taken.get(self.stack[-1], 0.0) + now - self.last
        self.last = now

    def around(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose time counts as that of `part`."""

        def timed(*args: Any, **named: Any) -> Any:
            self.switch()
            self.stack.append(part)
            try:
                return function(*args, **named)
            finally:
                self.switch()
                self.stack.pop()
                if part == "first step":
                    raise _Reached

        return timed


def main() -> None:
    laps = Laps(float(sys.argv[1]))
    sys.argv = ["taskgraft", *sys.argv[2:]]
    from taskgraft.cli import console
    from taskgraft.cli.app import main as command

    with console.importing():
        from taskgraft.pipeline import run

    laps.switch()
    laps.stack = ["rest"]
    for part, home, name, others in PARTS:
        module = importlib.import_module(home)
        wrapped = laps.around(part, getattr(module, name))
        for place in (home, *others):
            setattr(importlib.import_module(place), name, wrapped)
    assert run
    with contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(_Reached):
        command()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    found = {part: round(seconds, 3) for part, seconds in laps.taken.items()}
    done = {"parts": found, "total": round(sum(found.values()), 3), "cpu": round(usage.ru_utime + usage.ru_stime, 3)}
    print(json.dumps(done), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
