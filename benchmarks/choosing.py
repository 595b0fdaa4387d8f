"""Every method on four pairs of tasks and two kinds of network: the evidence behind the default method.

    .venv/bin/python benchmarks/choosing.py OUT PAIR [PAIR ...] --shared DIR --made DIR

`--shared` holds the car data and the checkpoint, `--made` what benchmarks/pairs.py wrote and, for makes-colours, a timm
folder `lite0` with ImageNet weights. Parents are trained into OUT. Runs are not repeated, so the same command goes on;
results/choosing.json keeps the numbers of every pair, and arms or seeds that are run later join those of before.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from taskgraft.commands.compare import Variant, compare
from taskgraft.commands.train import train
from taskgraft.config import TRAIN_DEFAULTS, TrainingConfig
from taskgraft.methods.presets import DEFAULT_METHOD
from taskgraft.metrics import t_interval
from taskgraft.pipeline.request import Request
from taskgraft.results.record import Comparison, Record, load_record, versions
from taskgraft.types import Callbacks

RESULTS = Path(__file__).parent / "results" / "choosing.json"
LOW = "finetune (low rate)"
MEASURES = ("score", "last", "old", "new", "forgetting", "agreement")  # of a run, as fractions
METHODS = (
    "frozen", "taps", "ladder", "l2sp", "ewc", "mas", "distill", "lwf", "distill + ewc", "wise", "lora + distill",
)  # fmt: skip
# One backbone, one pass: a small network beside it, at a higher rate and on more varied views.
ONE = "ladder"
ONE_RUN: dict[str, Any] = {"steps": 900, "lr": 0.003, "views": 32}
STEPS = {"fashion-vit": 300, "digits": 300}  # of an extension where nothing else is asked; elsewhere the default
PARENTS = {  # old task, new task, model, input, steps
    "makes-colours": ("a.csv", "b.csv", "make", "colour", "", "64 squash bilinear imagenet", 600),
    "fashion": ("a", "b", "first", "second", "resnet18", "32 squash bilinear half", 600),
    "fashion-vit": ("a", "b", "first", "second", "vit_tiny_patch16_224", "64 squash bilinear half", 600),
    "digits": ("a", "b", "even", "odd", "test_resnet", "32 squash bilinear half", 400),
}


def request_of(name: str, shared: Path, made: Path, out: Path, callbacks: Callbacks) -> Request:
    """What a pair asks for; its parent is trained when it is missing."""
    if name == "cars-colours":
        return Request(
            str(shared / "checkpoints/cars196_tf_efficientnet_lite0.pth.tar"), shared / "data/colours", "colour",
            old_val=(shared / "data/cars/val",), arch="tf_efficientnet_lite0",
            labels=shared / "checkpoints/cars196_labels.txt", preprocessing="96 squash bilinear imagenet",
            parent_task="model",
        )  # fmt: skip
    old, new, task, other, model, preprocessing, steps = PARENTS[name]
    data = made / name.removesuffix("-vit")
    start: dict[str, Any] = {
        "preprocessing": preprocessing,
        **({"model": model} if model else {"weights": f"local-dir:{made}/lite0"}),
    }
    parent = out / name / "parent"
    train(
        data / old,
        parent,
        task=task,
        config=replace(TRAIN_DEFAULTS, steps=steps),
        resume=True,
        callbacks=callbacks,
        **start,
    )
    return Request(str(parent), data / new, other, old_val=(data / old,))


def variants(config: TrainingConfig, arms: str) -> list[Variant]:
    """The default, the baseline at two rates, and every other method; `arms` names some of them, by semicolons."""
    found = [
        Variant("finetune", "finetune", config),
        Variant(LOW, "finetune", replace(config, lr=config.lr / 10)),
        Variant(f"{DEFAULT_METHOD} (default)", DEFAULT_METHOD, config),
    ]
    found += [Variant(method, method, config) for method in METHODS]
    found.append(Variant("one backbone", ONE, replace(config, **ONE_RUN)))
    chosen = [word.strip() for word in arms.split(";") if word.strip()]
    return [variant for variant in found if not chosen or variant.label in chosen]


def measures(comparison: Comparison) -> list[dict[str, Any]]:
    """What each run of each configuration measured, as fractions, by label and seed."""
    of: dict[str, Callable[[Record], float]] = {
        "score": _score, "last": _last, "old": _old, "new": _new, "forgetting": _lost, "agreement": _agreed,
        "parameters": lambda record: record.parameters["child"] / record.parameters["parent"],
        "arithmetic": lambda record: record.flops["child"] / record.flops["parent"],
        "seconds": lambda record: record.seconds["total"],
    }  # fmt: skip
    return [
        {
            "label": variant.label, "method": variant.method, "seed": record.seed,
            **{key: measure(record) for key, measure in of.items()},
            "test": [task.test.mean for task in record.tasks if task.test],
        }
        for variant in comparison.variants
        for record in variant.records
    ]  # fmt: skip


def together(old: Sequence[dict[str, Any]], new: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Runs of before and of now; one of now replaces its namesake of the same seed."""
    return list({(run["label"], run["seed"]): run for run in [*old, *new]}.values())


def rows(runs: Sequence[dict[str, Any]], old: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each configuration: means and 95 % t-intervals over its seeds.

    A row of before stands where its configuration has more seeds than runs are kept of.
    """
    kept = {row["label"]: row for row in old}
    for label in dict.fromkeys(run["label"] for run in runs):
        own = [run for run in runs if run["label"] == label]
        if label in kept and kept[label]["seeds"] > len(own):
            continue
        kept[label] = {
            "label": label, "method": own[0]["method"], "seeds": len(own),
            **{key: t_interval([run[key] for run in own]) for key in MEASURES},
            "parameters": own[0]["parameters"], "arithmetic": own[0]["arithmetic"],
            "seconds": float(np.median([run["seconds"] for run in own])),
            "test": [rate for run in own for rate in run["test"]],
        }  # fmt: skip
    return list(kept.values())


def close(rows: Sequence[dict[str, Any]], separate: dict[str, list[float]], ends: Sequence[float]) -> None:
    """Add to each row the fraction closed of the gap from low-rate fine-tuning to two models, ends held at their means.

    `closed_last` is the same at the last step, where no evaluation was the best of many: `ends` are the accuracies of
    the separate models there.
    """
    low = next((row for row in rows if row["label"] == LOW), None)
    alone = [value for values in separate.values() for value in values]
    for key, of, bests in (("closed", "score", alone), ("closed_last", "last", ends)):
        if low is None or not bests:
            continue
        parent = low["old"][0] + low["forgetting"][0]
        floor, bound = low[of][0], (parent + float(np.mean(bests))) / 2
        if bound > floor:
            for row in rows:
                mean, half = row[of]
                row[key] = ((mean - floor) / (bound - floor), half / (bound - floor))


def ends_of(runs: Path, task: str) -> list[float]:
    """The accuracy of each separate model at its last step."""
    found = [load_record(Record, path) for path in sorted((runs / "separate").glob("seed-*/record.json"))]
    return [record.history[-1].accuracy[task] for record in found]


def _score(record: Any) -> float:
    return record.score


def _last(record: Any) -> float:
    return float(np.mean(list(record.history[-1].accuracy.values())))


def _old(record: Any) -> float:
    return float(np.mean([task.child.mean for task in record.tasks if not task.new]))


def _new(record: Any) -> float:
    return record.tasks[-1].child.mean


def _lost(record: Any) -> float:
    return float(np.mean([task.forgetting.mean for task in record.tasks if not task.new]))


def _agreed(record: Any) -> float:
    return float(np.mean([task.agreement.mean for task in record.tasks if not task.new]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="+", choices=["cars-colours", *PARENTS])
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--made", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--arms", default="", help="only these, by label, separated by semicolons")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--steps", type=int, default=0, help="0 = those of the pair's table")
    parser.add_argument("--separate", type=float, default=4.0, help="as of `taskgraft compare`; 0 = none")
    given = parser.parse_args()
    callbacks = Callbacks(info=lambda line: print(line, flush=True))
    for name in given.names:
        usual = STEPS.get(name, TrainingConfig().steps)
        steps = given.steps or usual
        config = TrainingConfig(
            steps=steps, eval_every=50, save_every=10_000, precision=given.precision, seed=given.first_seed
        )
        request = replace(request_of(name, given.shared, given.made, given.out, callbacks), config=config)
        cache = given.out / "cache"
        found = compare(
            request,
            variants(config, given.arms),
            given.out / name / "runs",
            seeds=given.seeds,
            separate=given.separate,
            cache=cache,
            callbacks=callbacks,
        )
        stored = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        key = name if steps == usual else f"{name}, {steps} steps"
        before = stored.get(key, {})
        labels = {variant.label for variant in found.variants}
        runs = together(before.get("runs", []), measures(found))
        separate = found.separate or before.get("separate", {})
        ends = ends_of(given.out / name / "runs", request.task) or before.get("separate_last", [])
        table = rows(runs, before.get("rows", []))
        close(table, separate, ends)
        stored[key] = {
            "rows": table, "runs": runs, "separate": separate, "separate_last": ends,
            "failures": [*(line for line in before.get("failures", []) if line[0] not in labels), *found.failures],
            "proxies": [
                *(each for each in before.get("proxies", []) if each["label"] not in labels),
                *({"label": run["label"], "lost_agreement": 1 - run["agreement"], "forgetting": run["forgetting"]}
                  for run in runs if run["label"] in labels),
            ],
            "config": request.config.__dict__, "versions": versions(),
        }  # fmt: skip
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(stored, indent=1))
        for row in stored[key]["rows"]:
            print(
                row["label"], *(f"{key} {100 * row[key][0]:.1f}" for key in ("score", "old", "new")), row.get("closed")
            )


if __name__ == "__main__":
    main()
