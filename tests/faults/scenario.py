"""A fault as a row of the table: what happens, what is promised, and how it is brought about."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import forks
from taskgraft import Callbacks, TrainingConfig
from taskgraft.commands.extend import extend
from taskgraft.pipeline.run import Extension

CONFIG = TrainingConfig(steps=6, batch_size=8, head_steps=4, eval_every=3, save_every=2, log_every=3, precision="fp32")
FLAGS = (
    "--task", "paint", "--steps", "6", "--batch-size", "8", "--head-steps", "4",
    "--eval-every", "3", "--save-every", "2", "--log-every", "3", "--precision", "fp32",
)  # fmt: skip
COMPARED = ("model.safetensors", "metrics.jsonl", "split.csv", "predictions.npz")
STEP_4 = "state/step-000000004"  # a run that is stopped here has been evaluated once and saved twice


class Workspace(NamedTuple):
    """Where a fault is tried: `tmp_path` is its own; parent, child, images and an undisturbed run are shared."""

    tmp_path: Path
    parent: Path
    child: Path
    images: Path
    old_images: Path
    expected: Path

    def extend(self, out: Path, **options: Any) -> Extension:
        """The run whose result is `expected`, in this process."""
        options = {"task": "paint", "method": "distill", "config": CONFIG, "old_val": [self.old_images], **options}
        return extend(self.parent, options.pop("images", self.images), out, **options)

    def command(self, out: Path, *flags: object, method: str = "distill") -> list[object]:
        """The same run as a command."""
        cache = () if "--cache" in flags else ("--cache", "none")
        words = ["extend", self.parent, self.images, out, "--old-val", self.old_images, "--method", method]
        return [*words, *FLAGS, *cache, *flags]


class Fault(NamedTuple):
    """A row of the table: `cause` brings the fault about and returns what happened; `tests` names tests that do.

    `note` explains where less is promised than one would like.
    """

    number: int
    name: str
    promise: str
    cause: Callable[[Workspace], str] | None = None
    tests: tuple[str, ...] = ()
    note: str = ""


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.01)


def assert_same_bits(out: Path, expected: Path) -> str:
    """A run ended as the undisturbed one did, with nothing left behind."""
    for name in COMPARED:
        assert (out / name).read_bytes() == (expected / name).read_bytes(), name
    assert (out / "report.html").exists()
    assert not [path.name for path in out.rglob(".*") if path.name not in (".lock", ".holder")]
    return "the same bits"


def extend_until_killed(workspace: Workspace, out: Path) -> Path:
    """A run that was killed as soon as step 4 was saved."""

    def exit_at_step_4(*_: object) -> None:
        if (out / STEP_4).exists():
            os._exit(1)

    code, message = forks.fork(lambda: workspace.extend(out, callbacks=Callbacks(progress=exit_at_step_4))).wait()
    assert code == 1, message
    return out
