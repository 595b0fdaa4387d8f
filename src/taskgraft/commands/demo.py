"""`taskgraft demo`: a model of car makes is extended by paints, in eight configurations, on synthetic images."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from taskgraft.commands.compare import Variant, compare
from taskgraft.commands.train import train
from taskgraft.config import TRAIN_DEFAULTS, TrainingConfig
from taskgraft.methods.presets import BASELINE, DEFAULT_METHOD, REFERENCE
from taskgraft.pipeline.request import Request
from taskgraft.report import formatting as fmt
from taskgraft.results.record import Comparison
from taskgraft.synthetic import write_cars
from taskgraft.types import Callbacks, PathLike, as_path

# Small and short enough for about four minutes on two cores with AVX2.
SIZE = 32
PREPROCESSING = f"{SIZE} squash bilinear half"
MAKES = ("beetle", "bus", "coupe", "limousine", "microcar", "offroad", "pickup", "van")
PAINTS = ("black", "white", "red", "blue", "green", "yellow")
OLD_SAMPLE = 32  # training images of each make, for the methods that use some
PARENT_CONFIG = replace(
    TRAIN_DEFAULTS, steps=200, lr=0.002, warmup_steps=40, eval_every=50, save_every=200, precision="fp32"
)
# The reference experiment: one softmax over all outputs, constant learning rates, nothing else. It says neither what
# the optimizer is nor what BatchNorm's statistics do: docs/decisions.md, 89.
REFERENCE_CONFIG = TrainingConfig(
    steps=100,
    batch_size=16,
    optimizer="adamw",
    softmax="joint",
    schedule="constant",
    head_steps=0,
    clip_grad=0.0,
    norm="frozen",
    eval_every=20,
    log_every=10,
    save_every=100,
    precision="fp32",
)
# taskgraft's defaults with the demo's steps. Seed 0 selected strengths, so it is not reported.
DEFAULT_CONFIG = TrainingConfig(
    steps=100, batch_size=16, eval_every=20, log_every=10, save_every=100, precision="fp32", seed=1
)
VARIANTS = (
    *(Variant(preset.label, preset.method, replace(REFERENCE_CONFIG, lr=preset.lr)) for preset in REFERENCE),
    Variant("fair fine-tuning", BASELINE, DEFAULT_CONFIG),
    Variant("taskgraft's default", DEFAULT_METHOD, DEFAULT_CONFIG),
)
SEPARATE = 1.0  # times the steps, for the model of paints alone: the same budget


def demo(
    out: PathLike,
    *,
    seeds: int = 1,
    cache: PathLike | None = None,
    command: str = "taskgraft.demo",
    callbacks: Callbacks = Callbacks(),  # noqa: B008 - immutable
) -> Comparison:
    """Draw images, train a parent, extend it in eight configurations, and write `out/comparison/`.

    Six are the reference experiment's: one joint softmax, two constant learning rates, nothing else. Two are
    taskgraft's: plain fine-tuning and the default method under taskgraft's default settings. Rerun to resume.

    Args:
        out: Folder to write.
        seeds: Number of runs of each configuration.
        cache: Folder of decoded pixels and features; None = in memory only.
        command: The command that was typed, for the record.
        callbacks: Progress callbacks; progress is in images trained on.

    Returns:
        Settings and results of all runs.
    """
    out, cache, data = Path(out), as_path(cache), Path(out) / "data"
    parent = Variant("Alice's model of makes", "train", PARENT_CONFIG)
    runs = sum(variant.images for variant in VARIANTS) + round(SEPARATE * VARIANTS[-1].images)
    progress = _Progress(callbacks, parent.images + seeds * runs)
    progress.info(f"drawing synthetic cars: {len(MAKES)} makes in the street, {len(PAINTS)} paints in a spray booth")
    makes = write_cars(
        data / "makes", label="make", train=150, val=25, seed=1, size=SIZE, camera="street", classes=MAKES
    )
    sample = write_cars(
        data / "makes-sample", label="make", train=OLD_SAMPLE, val=0, seed=1, size=SIZE, camera="street", classes=MAKES
    )
    paints = write_cars(
        data / "paints", label="paint", train=80, val=25, seed=2, size=SIZE, camera="factory", classes=PAINTS
    )
    progress.info("training Alice's model of makes (ResNet-18, from random weights)")
    train(
        makes, out / "alice", task="make", preprocessing=PREPROCESSING, config=PARENT_CONFIG, cache=cache, resume=True,
        command=command, callbacks=Callbacks(progress=progress.train_parent),
    )  # fmt: skip
    progress.before = parent.images
    request = Request(out / "alice", paints, "paint", BASELINE, DEFAULT_CONFIG, old=sample, old_val=makes)
    return compare(
        request, VARIANTS, out / "comparison", seeds=seeds, separate=SEPARATE, cache=cache, command=command,
        callbacks=Callbacks(progress.info, progress.compare, callbacks.on_metrics, callbacks.status),
    )  # fmt: skip


class _Progress:
    """One progress bar over training and comparison, in images; lines of information say how long the rest takes."""

    def __init__(self, callbacks: Callbacks, total: int) -> None:
        self.callbacks, self.total, self.before = callbacks, total, 0
        self._start, self._left = time.monotonic(), ""

    def info(self, line: str) -> None:
        self.callbacks.info(line if line.startswith("parent:") else f"{line}{self._left}")

    def train_parent(self, what: str, done: int, total: int) -> None:
        if what == "training":  # reading so few images is not worth a bar
            self._advance("Alice's model of makes", done * PARENT_CONFIG.batch_size)

    def compare(self, what: str, done: int, total: int) -> None:
        if self.before + total == self.total:
            self._advance(what, self.before + done)

    def _advance(self, what: str, done: int) -> None:
        if done:
            seconds = (time.monotonic() - self._start) * (self.total - done) / done
            self._left = f" (about {fmt.duration(seconds)} left)"
        self.callbacks.progress(what, done, self.total)
