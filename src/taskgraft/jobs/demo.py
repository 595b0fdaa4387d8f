"""The embedded demo: synthetic cars, Alice's model of makes, Bob's paints in the reference experiment's six ways."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from taskgraft.data.drawn import write_cars
from taskgraft.jobs.compare import Arm, compare, images_of
from taskgraft.jobs.request import Request
from taskgraft.jobs.train import train
from taskgraft.record import Comparison
from taskgraft.report.wording import duration
from taskgraft.settings import LEARN, METHOD, Run
from taskgraft.types import PathLike, Watch, as_path

# Small and short enough for about four minutes on two cores with AVX2.
SIZE = 32
INPUT = f"{SIZE} squash bilinear half"
MAKES = ("beetle", "bus", "coupe", "limousine", "microcar", "offroad", "pickup", "van")
PAINTS = ("black", "white", "red", "blue", "green", "yellow")
OLD = 32  # training pictures of each make that EWC may see
ALICE = replace(LEARN, steps=200, rate=0.002, ramp=40, eval_every=50, save_every=200, precision="fp32")
# The text's set-up: one softmax over all outputs, constant rates of 0.001 and 0.0001, nothing else. It tells neither
# the optimizer nor what BatchNorm's statistics do: docs/decisions.md, 89.
TEXT = Run(
    steps=100,
    batch=16,
    optimiser="adamw",
    softmax="joint",
    schedule="constant",
    warmup=0,
    clip=0.0,
    norm="frozen",
    eval_every=20,
    log_every=10,
    save_every=100,
    precision="fp32",
)
# What taskgraft does unless told otherwise, with the demo's steps. Seed 0 chose strengths, so it is not reported.
OWN = replace(
    Run(), seed=1, steps=TEXT.steps, batch=TEXT.batch, eval_every=TEXT.eval_every, log_every=TEXT.log_every,
    save_every=TEXT.save_every, precision=TEXT.precision,
)  # fmt: skip
# Distillation at its default. EWC's strengths were chosen among 1e3, 1e4, 3e4 and 1e5 with seed 0 and other drawings.
ARMS = (
    Arm("baseline", "finetune", TEXT),
    Arm("EWC", "ewc(strength=3e4)", TEXT),
    Arm("distillation", "distill", TEXT),
    Arm("baseline (low rate)", "finetune", replace(TEXT, rate=0.0001)),
    Arm("EWC (low rate)", "ewc(strength=1e4)", replace(TEXT, rate=0.0001)),
    Arm("distillation (low rate)", "distill", replace(TEXT, rate=0.0001)),
    Arm("fair fine-tuning", "finetune", OWN),
    Arm("taskgraft's default", METHOD, OWN),
)
SEPARATE = 1.0  # times the steps, for the model of paints alone: the same budget


def demo(
    out: PathLike,
    *,
    seeds: int = 1,
    cache: PathLike | None = None,
    command: str = "taskgraft.demo",
    watch: Watch = Watch(),  # noqa: B008 - immutable
) -> Comparison:
    """Draw the pictures, train the parent, extend it in eight arrangements, write `out/comparison/`.

    Six are the reference experiment's: one joint softmax, two constant rates, nothing else. Two are taskgraft's: plain
    fine-tuning and the default method, under the same settings, those that taskgraft has by itself. Everything lies in
    `out`; the same command goes on after a stop.
    """
    out, cache = Path(out), as_path(cache)
    watch = _timed(watch)
    watch.say(f"drawing synthetic cars: {len(MAKES)} makes in the street, {len(PAINTS)} paints in a spray booth")
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
    watch.say("training Alice's model of makes (ResNet-18, from random weights)")
    alice = images_of([Arm("", "", ALICE)])
    total = alice + seeds * (images_of(ARMS) + round(SEPARATE * images_of([Arm("", "", OWN)])))
    train(
        makes, out / "alice", task="make", wanted=INPUT, run=ALICE, cache=cache, resume=True, command=command,
        watch=_share(watch, "Alice's model of makes", ALICE.batch, total),
    )  # fmt: skip
    request = Request(str(out / "alice"), paints, "paint", "finetune", OWN, old=sample, old_val=(makes,))
    return compare(
        request, ARMS, out / "comparison", seeds=seeds, separate=SEPARATE, cache=cache, command=command,
        watch=watch._replace(progress=_after(watch, alice, total)),
    )  # fmt: skip


def _after(watch: Watch, before: int, total: int) -> Callable[[str, int, int], None]:
    """The progress of the comparison, which is the second part of the demo; not that of reading its few pictures."""

    def progress(what: str, done: int, of: int) -> None:
        if before + of == total:
            watch.progress(what, before + done, total)

    return progress


def _share(watch: Watch, what: str, batch: int, total: int) -> Watch:
    """A watch for a training that is the first part of the demo, in pictures learnt from."""

    def progress(kind: str, done: int, of: int) -> None:
        if kind == "training":
            watch.progress(what, done * batch, total)

    return Watch(progress=progress)


def _timed(watch: Watch) -> Watch:
    """A watch whose lines say, where a part of the work begins, how long the rest takes at this pace."""
    begun = time.monotonic()
    left = ""

    def progress(what: str, done: int, total: int) -> None:
        nonlocal left
        if done:
            left = f" (about {duration((time.monotonic() - begun) * (total - done) / done)} left)"
        watch.progress(what, done, total)

    return watch._replace(
        say=lambda line: watch.say(line if line.startswith("parent:") else f"{line}{left}"), progress=progress
    )
