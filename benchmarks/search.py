"""What a search costs and finds: the whole grid against successive halving, and with against without sharing.

    .venv/bin/python benchmarks/search.py OUT [--steps 160] [--seeds 3] [--share]

The drawn cars of the demo at 32 px: paints added to a small residual network of makes, by `distill + ewc` on a grid of
five strengths each and two rates. Halving is given the same grid. `--share` repeats the halving without sharing, for
the seconds. Finished trials are not repeated: the same command goes on; results/search.json has what is reported.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from taskgraft import report
from taskgraft.commands.train import train
from taskgraft.commands.tune import tune
from taskgraft.config import TRAIN_DEFAULTS, TrainingConfig
from taskgraft.pipeline.request import Request
from taskgraft.results.record import versions
from taskgraft.synthetic import write_cars
from taskgraft.tuning import space
from taskgraft.tuning.search_config import SearchConfig, WorkerConfig
from taskgraft.types import Callbacks

RESULTS = Path(__file__).parent / "results" / "search.json"
METHOD = "distill(strength=[0, 0.3, 1, 3, 10]) + ewc(strength=[0, 10, 100, 1e3, 1e4])"
SPACE = "lr=[0.001, 0.0001]"
SIZE = 32


def drawn(out: Path, callbacks: Callbacks) -> None:
    """The demo's two sets of images, and a model of the first."""
    makes = write_cars(out / "makes", label="make", train=200, val=25, seed=1, size=SIZE, camera="street")
    write_cars(out / "paints", label="paint", train=80, val=25, seed=2, size=SIZE, camera="factory")
    learn = replace(TRAIN_DEFAULTS, steps=1000, precision="fp32-channels-last")
    look = f"{SIZE} squash bilinear half"
    train(
        makes,
        out / "alice",
        task="make",
        model="test_resnet",
        preprocessing=look,
        config=learn,
        resume=True,
        callbacks=callbacks,
    )


def row(found: Any) -> dict[str, Any]:
    best = found.choices[0].candidate
    return {
        "score": best.score, "method": best.method, "lr": best.lr, "old": best.old.mean, "new": best.new.mean,
        "frontier": len(found.frontier), **found.cost,
    }  # fmt: skip


def ways(given: argparse.Namespace, seed: int) -> Iterator[tuple[str, SearchConfig, Request]]:
    """The same grid to the end, halved, and halved without sharing."""
    precision = "fp32-channels-last"  # fixed, so that all take the same steps
    config = TrainingConfig(steps=given.steps, eval_every=given.every, save_every=1000, precision=precision, seed=seed)
    parent, old, new = (given.out / part for part in ("alice", "makes", "paints"))
    request = Request(str(parent), new, "paint", config=config, old_val=(old,))
    yield "grid", SearchConfig(sampler="grid"), request
    yield "halving", SearchConfig(sampler="grid", prune="yes"), request
    if given.share:
        yield "halving nothing shared", SearchConfig(sampler="grid", prune="yes", no_share=True), request


def searched(request: Request) -> space.Space:
    return space.parse(METHOD, SPACE, request.config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--share", action="store_true")
    given = parser.parse_args()
    callbacks, worker_config = Callbacks(info=lambda line: print(line, flush=True)), WorkerConfig(given.jobs, 1)
    cache = given.out / "cache"
    drawn(given.out, callbacks)
    runs = []
    for seed in range(given.seeds):
        found = {}
        for name, search_config, request in ways(given, seed):
            place = given.out / f"{name.replace(' ', '-')}-{seed}"
            found[name] = tune(
                request,
                searched(request),
                place,
                search_config=search_config,
                worker_config=worker_config,
                cache=cache,
                callbacks=callbacks,
            )
        runs.append({"seed": seed, **{name: row(one) for name, one in found.items()}})
        if seed == 0:
            print(report.format_search_table(found["grid"]))
        RESULTS.parent.mkdir(exist_ok=True)
        settings = {"method": METHOD, "space": SPACE, "steps": given.steps, "every": given.every}
        RESULTS.write_text(json.dumps({"settings": settings, "versions": versions(), "runs": runs}, indent=1))
        print(json.dumps(runs[-1], indent=1), flush=True)


if __name__ == "__main__":
    main()
