"""Every method on four pairs of tasks and two kinds of network: the evidence behind the default method.

    .venv/bin/python benchmarks/choosing.py OUT PAIR [PAIR ...] --shared DIR --made DIR

`--shared` holds the car data and the checkpoint, `--made` what benchmarks/pairs.py wrote and, for makes-colours, a timm
folder `lite0` with ImageNet weights. Parents are trained into OUT. Runs are not repeated, so the same command goes on;
results/choosing.json keeps the numbers of every pair.
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
from taskgraft.results.record import Comparison, Record, VariantResult, load_record, versions
from taskgraft.types import Callbacks

RESULTS = Path(__file__).parent / "results" / "choosing.json"
LOW = "finetune (low rate)"
METHODS = (
    "frozen", "taps", "ladder", "l2sp", "ewc", "mas", "distill", "lwf", "distill + ewc", "wise", "lora + distill",
)  # fmt: skip
# One backbone, one pass: a small network beside it, at a higher rate and on more varied views.
ONE = "ladder"
ONE_RUN: dict[str, Any] = {"steps": 900, "lr": 0.003, "views": 32}
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


def rows(comparison: Comparison, ends: Sequence[float] = ()) -> list[dict[str, Any]]:
    """A row for each configuration; `closed` is the fraction closed of the gap from low-rate finetune to two models.

    `closed_last` is the same at the last step, where no evaluation was the best of many: `ends` are the accuracies of
    the separate models there.
    """
    alone = [value for values in comparison.separate.values() for value in values]
    found = []
    for variant in comparison.variants:
        if not variant.records:
            continue
        row: dict[str, Any] = {
            "label": variant.label, "method": variant.method, "seeds": len(variant.records)
        }  # fmt: skip
        measures = {
            "score": _score, "last": _last, "old": _old, "new": _new, "forgetting": _lost, "agreement": _agreed
        }  # fmt: skip
        for key, of in measures.items():
            row[key] = t_interval([of(record) for record in variant.records])
        row["closed"] = _closed(comparison, variant, alone, _score)
        row["closed_last"] = _closed(comparison, variant, ends, _last)
        record = variant.records[0]
        row["parameters"] = record.parameters["child"] / record.parameters["parent"]
        row["arithmetic"] = record.flops["child"] / record.flops["parent"]
        row["seconds"] = float(np.median([record.seconds["total"] for record in variant.records]))
        row["test"] = [task.test.mean for record in variant.records for task in record.tasks if task.test]
        found.append({key: value for key, value in row.items() if value is not None})
    return found


def _closed(
    comparison: Comparison, variant: VariantResult, alone: Sequence[float], of: Callable[[Record], float]
) -> tuple[float, float] | None:
    """Fraction of the gap that the configuration closes, both ends held at their means; None without them."""
    low = next((a for a in comparison.variants if a.label == LOW and a.records), None)
    if low is None or not alone:
        return None
    parent = float(np.mean([task.parent.mean for task in low.records[0].tasks if task.parent]))
    floor, bound = _mean(low, of), (parent + float(np.mean(alone))) / 2
    if bound <= floor:
        return None
    return t_interval([(of(record) - floor) / (bound - floor) for record in variant.records])


def ends_of(runs: Path, task: str) -> list[float]:
    """The accuracy of each separate model at its last step."""
    found = [load_record(Record, path) for path in sorted((runs / "separate").glob("seed-*/record.json"))]
    return [record.history[-1].accuracy[task] for record in found]


def proxies(comparison: Comparison) -> list[dict[str, Any]]:
    """Of every run: what agreement on the new images said, and what was forgotten in truth."""
    return [
        {"label": variant.label, "lost_agreement": 1 - _agreed(record), "forgetting": _lost(record)}
        for variant in comparison.variants
        for record in variant.records
    ]


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


def _mean(variant: VariantResult, of: Callable[[Record], float]) -> float:
    return float(np.mean([of(record) for record in variant.records]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="+", choices=["cars-colours", *PARENTS])
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--made", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", default="", help="only these, by label, separated by semicolons")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--steps", type=int, default=TrainingConfig().steps)
    parser.add_argument("--separate", type=float, default=4.0, help="as of `taskgraft compare`; 0 = none")
    given = parser.parse_args()
    callbacks = Callbacks(info=lambda line: print(line, flush=True))
    config = TrainingConfig(steps=given.steps, eval_every=50, save_every=10_000, precision=given.precision)
    for name in given.names:
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
        key = name if given.steps == TrainingConfig().steps else f"{name}, {given.steps} steps"
        ends = ends_of(given.out / name / "runs", request.task)
        stored[key] = {
            "rows": rows(found, ends), "separate": found.separate, "separate_last": ends,
            "proxies": proxies(found), "failures": found.failures,
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
