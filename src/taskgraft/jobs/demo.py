"""The embedded demo: synthetic cars, Alice's model of makes, Bob's paints in the founding text's six arrangements."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from taskgraft.data.drawn import write_cars
from taskgraft.jobs.compare import Arm, arms, compare
from taskgraft.jobs.request import Request
from taskgraft.jobs.train import train
from taskgraft.record import Comparison
from taskgraft.settings import LEARN, METHOD, Run
from taskgraft.types import PathLike, Watch, as_path

SIZE = 64
INPUT = f"{SIZE} squash bilinear half"
# The founding text's set-up: one softmax over all outputs, constant rates of 0.001 and 0.0001, nothing else.
TEXT = Run(
    steps=150,
    optimiser="adamw",
    softmax="joint",
    schedule="constant",
    warmup=0,
    clip=0.0,
    eval_every=15,
    log_every=15,
    save_every=150,
)


def demo(
    out: PathLike,
    *,
    seeds: int = 1,
    cache: PathLike | None = None,
    command: str = "taskgraft.demo",
    watch: Watch = Watch(),  # noqa: B008 - immutable
) -> Comparison:
    """Draw the pictures, train the parent, extend it in seven arrangements, write `out/comparison/`.

    The six of the founding text: its joint softmax, its two rates, no warm-up. The seventh is taskgraft's default.
    Everything lies in `out`; the same command goes on after a stop.
    """
    out, cache = Path(out), as_path(cache)
    watch.say("drawing synthetic cars: 12 makes seen by a street camera, 10 paints seen by a factory camera")
    makes = write_cars(out / "data" / "makes", label="make", train=200, val=25, seed=1, size=SIZE, camera="street")
    paints = write_cars(out / "data" / "paints", label="paint", train=80, val=25, seed=2, size=SIZE, camera="factory")
    watch.say("training Alice's model of makes (ResNet-18, from random weights)")
    parent = out / "alice"
    learn = replace(LEARN, steps=500)
    train(makes, parent, task="make", wanted=INPUT, run=learn, cache=cache, resume=True, command=command, watch=watch)
    chosen = arms(["finetune", "ewc(strength=1e6)", "distill"], [0.001, 0.0001], TEXT)
    default = Run(steps=TEXT.steps, eval_every=TEXT.eval_every, log_every=TEXT.log_every, save_every=TEXT.save_every)
    chosen.append(Arm("taskgraft's default", METHOD, default))
    request = Request(str(parent), paints, "paint", "finetune", default, old_val=(makes,))
    return compare(
        request, chosen, out / "comparison", seeds=seeds, separate=2.0, cache=cache, command=command, watch=watch
    )
