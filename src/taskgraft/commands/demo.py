"""The embedded demo: synthetic cars, Alice's model of makes, Bob's paints in the reference experiment's six ways."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from taskgraft.commands.compare import Variant, compare, images_of
from taskgraft.config import TRAIN_DEFAULTS, TrainingConfig
from taskgraft.demo.cars import write_cars
from taskgraft.methods.presets import BASELINE, DEFAULT_METHOD, REFERENCE
from taskgraft.pipeline.request import Request
from taskgraft.pipeline.train import train
from taskgraft.report.formatting import format_duration
from taskgraft.results.record import Comparison
from taskgraft.types import Callbacks, PathLike, as_path

# Small and short enough for about four minutes on two cores with AVX2.
SIZE = 32
INPUT = f"{SIZE} squash bilinear half"
MAKES = ("beetle", "bus", "coupe", "limousine", "microcar", "offroad", "pickup", "van")
PAINTS = ("black", "white", "red", "blue", "green", "yellow")
OLD = 32  # training images of each make that EWC may see
ALICE = replace(TRAIN_DEFAULTS, steps=200, lr=0.002, warmup_steps=40, eval_every=50, save_every=200, precision="fp32")
# The text's set-up: one softmax over all outputs, constant rates of 0.001 and 0.0001, nothing else. It tells neither
# the optimizer nor what BatchNorm's statistics do: docs/decisions.md, 89.
TEXT = TrainingConfig(
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
# What taskgraft does unless told otherwise, with the demo's steps. Seed 0 chose strengths, so it is not reported.
OWN = replace(
    TrainingConfig(), seed=1, steps=TEXT.steps, batch_size=TEXT.batch_size, eval_every=TEXT.eval_every, log_every=TEXT.log_every,
    save_every=TEXT.save_every, precision=TEXT.precision,
)  # fmt: skip
ARMS = (
    *(Variant(preset.label, preset.method, replace(TEXT, lr=preset.lr)) for preset in REFERENCE),
    Variant("fair fine-tuning", BASELINE, OWN),
    Variant("taskgraft's default", DEFAULT_METHOD, OWN),
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
    """Draw the images, train the parent, extend it in eight arrangements, write `out/comparison/`.

    Six are the reference experiment's: one joint softmax, two constant rates, nothing else. Two are taskgraft's: plain
    fine-tuning and the default method, under the same settings, those that taskgraft has by itself. Everything lies in
    `out`; the same command goes on after a stop.
    """
    out, cache = Path(out), as_path(cache)
    callbacks = _timed(callbacks)
    callbacks.info(f"drawing synthetic cars: {len(MAKES)} makes in the street, {len(PAINTS)} paints in a spray booth")
    data = out / "data"
    makes = write_cars(
        data / "makes", label="make", train=150, val=25, seed=1, size=SIZE, camera="street", classes=MAKES
    )
    sample = write_cars(
        data / "makes-sample", label="make", train=OLD, val=0, seed=1, size=SIZE, camera="street", classes=MAKES
    )
    paints = write_cars(
        data / "paints", label="paint", train=80, val=25, seed=2, size=SIZE, camera="factory", classes=PAINTS
    )
    callbacks.info("training Alice's model of makes (ResNet-18, from random weights)")
    alice = images_of([Variant("", "", ALICE)])
    total = alice + seeds * (images_of(ARMS) + round(SEPARATE * images_of([Variant("", "", OWN)])))
    train(
        makes, out / "alice", task="make", preprocessing=INPUT, config=ALICE, cache=cache, resume=True, command=command,
        callbacks=_share(callbacks, "Alice's model of makes", ALICE.batch_size, total),
    )  # fmt: skip
    request = Request(str(out / "alice"), paints, "paint", BASELINE, OWN, old=sample, old_val=(makes,))
    return compare(
        request, ARMS, out / "comparison", seeds=seeds, separate=SEPARATE, cache=cache, command=command,
        callbacks=callbacks._replace(progress=_after(callbacks, alice, total)),
    )  # fmt: skip


def _after(callbacks: Callbacks, before: int, total: int) -> Callable[[str, int, int], None]:
    """The progress of the comparison, which is the second part of the demo; not that of reading its few images."""

    def progress(what: str, done: int, of: int) -> None:
        if before + of == total:
            callbacks.progress(what, before + done, total)

    return progress


def _share(callbacks: Callbacks, what: str, batch: int, total: int) -> Callbacks:
    """A watch for a training that is the first part of the demo, in images learnt from."""

    def progress(kind: str, done: int, of: int) -> None:
        if kind == "training":
            callbacks.progress(what, done * batch, total)

    return Callbacks(progress=progress)


def _timed(callbacks: Callbacks) -> Callbacks:
    """A watch whose lines say, where a part of the work begins, how long the rest takes at this pace."""
    begun = time.monotonic()
    left = ""

    def progress(what: str, done: int, total: int) -> None:
        nonlocal left
        if done:
            left = f" (about {format_duration((time.monotonic() - begun) * (total - done) / done)} left)"
        callbacks.progress(what, done, total)

    return callbacks._replace(
        info=lambda line: callbacks.info(line if line.startswith("parent:") else f"{line}{left}"), progress=progress
    )
