"""A fault as a row: what happens, what is promised, how it is brought about; and how a command is run in a fork."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import dying
from dying import Child
from taskgraft import Callbacks, TrainingConfig
from taskgraft.cli import main
from taskgraft.commands.extend import extend
from taskgraft.pipeline.run import Extension

RUN = TrainingConfig(steps=6, batch_size=8, head_steps=4, eval_every=3, save_every=2, log_every=3, precision="fp32")
FLAGS = (
    "--task",
    "paint",
    "--method",
    "distill",
    "--steps",
    "6",
    "--batch-size",
    "8",
    "--head-steps",
    "4",
    "--eval-every",
    "3",
    "--save-every",
    "2",
    "--log-every",
    "3",
    "--precision",
    "fp32",
)
BITS = ("model.safetensors", "metrics.jsonl", "split.csv", "predictions.npz")
UNDER_WAY = "state/step-000000004"  # a run that is stopped here has been evaluated once and saved three times


class Place(NamedTuple):
    """Where a row is tried: `root` is its own; a parent, a child of it, images and an undisturbed run are shared."""

    root: Path
    alice: Path
    plain: Path
    new: Path
    old: Path
    calm: Path

    def extend(self, out: Path, **more: Any) -> Extension:
        """The run whose bits are known, in this process."""
        asked = {"task": "paint", "method": "distill", "config": RUN, "old_val": [self.old], **more}
        return extend(self.alice, asked.pop("new", self.new), out, **asked)

    def words(self, out: Path, *more: object) -> tuple[object, ...]:
        """The same run as a command."""
        cache = () if "--cache" in more else ("--cache", "none")
        return ("extend", self.alice, self.new, out, "--old-val", self.old, *FLAGS, *cache, *more)


class Fault(NamedTuple):
    """A row of the table: `make` brings the fault about and tells what happened; `tested` names tests that do.

    `changed` says why what is promised here is not what the list wished.
    """

    number: int
    what: str
    promise: str
    make: Callable[[Place], str] | None = None
    tested: tuple[str, ...] = ()
    changed: str = ""


class Told(NamedTuple):
    """What a command said: its exit code, and both streams."""

    code: int
    out: str
    err: str

    @property
    def last(self) -> str:
        """The line that a person reads first."""
        return (self.err.rstrip().splitlines() or [""])[-1].removeprefix("taskgraft: ")


def command(words: Sequence[object], root: Path, prepare: Callable[[], Any] = lambda: None) -> Told:
    """Run the command line in a fork of this process, with streams of its own; `prepare` comes before it."""
    files = [root / "said.out", root / "said.err"]
    code, said = dying.end(begun(words, files, prepare))
    assert code != dying.OTHER, said
    return Told(code, *(file.read_text(errors="replace") for file in files))


def begun(words: Sequence[object], streams: Sequence[Path], prepare: Callable[[], Any] = lambda: None) -> Child:
    """Start the command line in a fork of this process."""
    for file in streams:
        file.touch()

    def work() -> None:
        for number, file in enumerate(streams, 1):
            os.dup2(os.open(file, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False, buffering=1)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
        sys.argv = ["taskgraft", *map(str, words)]
        prepare()
        try:
            main()
        except SystemExit as end:
            sys.stdout.flush()
            os._exit(end.code if isinstance(end.code, int) else 0)

    return dying.begin(work)


def waited_for(there: Callable[[], bool], seconds: float = 60) -> None:
    """Wait until something is there."""
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.01)


def same_bits(out: Path, calm: Path) -> str:
    """Assert that a run ended as the undisturbed one did, with nothing left behind."""
    for name in BITS:
        assert (out / name).read_bytes() == (calm / name).read_bytes(), name
    assert (out / "report.html").exists()
    left = [path.name for path in out.rglob(".*") if path.name not in (".lock", ".holder")]
    assert not left
    return "the same bits"


def stopped(place: Place, out: Path) -> Path:
    """A run that was killed once `UNDER_WAY` was saved."""

    def work() -> None:
        place.extend(out, callbacks=Callbacks(progress=lambda *_: os._exit(1) if (out / UNDER_WAY).exists() else None))

    code, said = dying.end(dying.begin(work))
    assert code == 1, said
    return out
