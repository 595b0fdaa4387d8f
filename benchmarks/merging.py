"""Two finished models merged into one plain backbone, without a label, beside merging their weights alone.

    .venv/bin/python benchmarks/merging.py OUT --made DIR [--steps 600] [--seeds 3]

`--made` is what benchmarks/pairs.py wrote. Siblings: a ResNet-18 of Fashion-MNIST 0-4, extended by classes 5-9 and,
apart from that, by even digits; both children are plain, and both still know the first task. Strangers: that ResNet-18
and an EfficientNet-Lite0 of even digits, with nothing in common. The images are the training images of all tasks,
without their labels. Accuracies are those of the validation images, at the last step. Finished runs are not repeated.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import taskgraft
from taskgraft.config import COMPRESSION_DEFAULTS, TRAIN_DEFAULTS, TrainingConfig
from taskgraft.metrics import t_interval
from taskgraft.results.record import versions

RESULTS = Path(__file__).parent / "results" / "merging.json"
INPUT = "32 squash bilinear half"


def once(seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """Train the models of one seed and merge both pairs."""
    place, cache = given.out / f"seed-{seed}", given.out / "cache"
    garments, footwear, digits = given.made / "fashion/a", given.made / "fashion/b", given.made / "digits/a"
    common = {"precision": given.precision, "seed": seed, "save_every": 10_000}
    learn = replace(TRAIN_DEFAULTS, steps=400, eval_every=400, **common)
    extend = TrainingConfig(steps=400, eval_every=400, **common)
    teach = replace(COMPRESSION_DEFAULTS, steps=given.steps, eval_every=given.steps, **common)
    done = {"cache": cache, "resume": True}
    train = {"preprocessing": INPUT, "config": learn, **done}
    parent = taskgraft.train(garments, place / "parent", task="garment", model="resnet18", **train)
    stranger = taskgraft.train(digits, place / "stranger", task="even", model="tf_efficientnet_lite0", **train)
    children = [
        taskgraft.extend(
            parent.out, data, place / task, task=task, method="distill", old_val=garments, config=extend, **done
        )
        for task, data in (("footwear", footwear), ("even", digits))
    ]
    images = {"siblings": (garments, footwear, digits), "strangers": (garments, digits)}
    pairs = {"siblings": children, "strangers": [parent, stranger]}
    results: dict[str, Any] = {}
    for name, models in pairs.items():
        merged = taskgraft.merge(
            models[0].out, models[1].out, place / name, images=[path / "train" for path in images[name]],
            val=[path / "val" for path in images[name]], ancestor=parent.out if name == "siblings" else None,
            config=teach, **done,
        )  # fmt: skip
        before = {task.name: task.parent.mean for task in merged.record.tasks if task.parent}
        after = {task.name: task.child.mean for task in merged.record.tasks if task.child}
        results[name] = {"models": before, "merged": after, **merged.record.baselines}
        print(seed, name, {row: _percent(values) for row, values in results[name].items()}, flush=True)
    return results


def _percent(values: Mapping[str, float]) -> dict[str, float]:
    return {task: round(100 * value, 1) for task, value in values.items()}


def table(runs: list[dict[str, Any]]) -> str:
    """The results as Markdown: means and 95 % t-intervals over seeds."""
    lines = []
    for pair in (key for key in runs[0] if key != "seed"):
        tasks = list(runs[0][pair]["models"])
        lines += ["", f"| {pair} | " + " | ".join(tasks) + " |", "|---|" + "---:|" * len(tasks)]
        for row in runs[0][pair]:
            values = [t_interval([100 * run[pair][row][task] for run in runs]) for task in tasks]
            lines.append(f"| {row} | " + " | ".join(f"{mean:.1f} ± {half:.1f}" for mean, half in values) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--made", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0, help="later seeds join those of before")
    parser.add_argument("--precision", default="auto")
    given = parser.parse_args()
    runs: list[dict[str, Any]] = json.loads(RESULTS.read_text())["runs"] if given.first_seed else []
    for seed in range(given.first_seed, given.first_seed + given.seeds):
        runs = [*(run for run in runs if run["seed"] != seed), {"seed": seed, **once(seed, given)}]
        RESULTS.write_text(json.dumps({"versions": versions(), "steps": given.steps, "runs": runs}, indent=1) + "\n")
    print(table(runs))


if __name__ == "__main__":
    main()
