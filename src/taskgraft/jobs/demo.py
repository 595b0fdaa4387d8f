"""The embedded demo: synthetic cars, Alice's model of makes, Bob's paints in the founding text's six arrangements."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from taskgraft.data.drawn import write_cars
from taskgraft.jobs.compare import Arm, arms, compare
from taskgraft.jobs.request import Request
from taskgraft.jobs.train import train
from taskgraft.record import Comparison
from taskgraft.settings import LEARN, Run
from taskgraft.types import Watch

SIZE = 64
INPUT = f"{SIZE} squash bilinear half"


def demo(
    out: Path,
    *,
    seeds: int = 1,
    cache: Path | None = None,
    command: str = "taskgraft.demo",
    watch: Watch = Watch(),  # noqa: B008 - immutable
) -> Comparison:
    """Draw the pictures, train the parent, extend it in seven arrangements, write `out/comparison/`.

    The six of the founding text use its joint softmax, constant rate and no warm-up; the seventh is taskgraft's
    default. Everything lies in `out`; the same command goes on after a stop.
    """
    watch.say("drawing synthetic cars: 12 makes seen by a street camera, 10 paints seen by a factory camera")
    makes = write_cars(out / "data" / "makes", label="make", train=120, val=30, seed=1, size=SIZE, camera="street")
    paints = write_cars(out / "data" / "paints", label="paint", train=80, val=30, seed=2, size=SIZE, camera="factory")
    watch.say("training Alice's model of makes (ResNet-18, from random weights)")
    parent = out / "alice"
    train(makes, parent, task="make", wanted=INPUT, run=LEARN, cache=cache, resume=True, command=command, watch=watch)
    text = Run(
        steps=150, softmax="joint", schedule="constant", warmup=0, clip=0.0, eval_every=10, log_every=10, save_every=150
    )  # fmt: skip
    chosen = arms(["finetune", "ewc(strength=1000)", "distill"], [0.01, 0.001], text)
    default = replace(text, softmax="per-task", schedule="cosine", warmup=200, clip=1.0)
    chosen.append(Arm("taskgraft's default", "distill", default))
    request = Request(str(parent), paints, "paint", "finetune", text, old_val=(makes,))
    return compare(
        request, chosen, out / "comparison", seeds=seeds, separate=2.0, cache=cache, command=command, watch=watch
    )
