"""One, two and twenty car models withheld from a parent, then added with their images alone, against retraining on all.

One parent knows none of the 23; each set is added to it alone.

    .venv/bin/python benchmarks/into.py OUT --shared DIR --weights FOLDER [--steps 800] [--seeds 3]

`--weights` is a timm folder with ImageNet weights of tf_efficientnet_lite0. The tables are written beside a copy of the
images in OUT; nothing is written to the shared folder.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from taskgraft import metrics
from taskgraft.commands.train import train
from taskgraft.config import TRAIN_DEFAULTS, TrainingConfig
from taskgraft.pipeline.request import Request
from taskgraft.pipeline.run import Extension, run
from taskgraft.results.record import versions
from taskgraft.types import Callbacks

RESULTS = Path(__file__).parent / "results" / "into.json"
SETS = (1, 2, 20)  # classes added at once


def tables(shared: Path, out: Path) -> dict[str, Path]:
    """Tables of the models that the parent knows, of each set of withheld ones, and of all."""
    pictures = out / "cars"
    if not pictures.exists():
        shutil.copytree(shared / "data/cars", pictures)
    rows = list(csv.DictReader((pictures / "manifest.csv").open()))
    names = sorted({row["model"] for row in rows})
    held = names[4 :: len(names) // sum(SETS)][: sum(SETS)]
    parts = {"kept": set(names) - set(held), "all": set(names)}
    for number, count in enumerate(SETS):
        first = sum(SETS[:number])
        parts[str(count)] = set(held[first : first + count])
    for name, models in parts.items():
        with (pictures / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "model", "split"])
            writer.writerows((row["path"], row["model"], row["split"]) for row in rows if row["model"] in models)
    return {name: pictures / f"{name}.csv" for name in parts}


def accuracies(done: Extension) -> dict[str, float]:
    """Accuracy on the old classes and on the added ones, each among all classes."""
    old, new = (metrics.correct(done.predictions[name], "model") for name in ("old", "new"))
    return {"old": float(old.mean()), "new": float(new.mean())}


def accuracy_on(done: Extension, table: Path) -> float:
    """Accuracy of a model trained on all classes, on the images of those in a table."""
    names = {row["model"] for row in csv.DictReader(table.open())}
    found = done.predictions["new"]
    chosen = np.array([found.classes["model"][label] in names for label in found.labels["model"]])
    return float(metrics.correct(found, "model")[chosen].mean())


def once(seed: int, given: argparse.Namespace) -> dict[str, dict[str, float]]:
    """One parent, to which each set is added in every way, and one model trained on all classes."""
    files = tables(given.shared, given.out)
    callbacks, cache, place = Callbacks(), given.out / "cache", given.out / f"seed-{seed}"
    learn = replace(TRAIN_DEFAULTS, steps=given.steps, eval_every=200, precision=given.precision, seed=seed)
    common = {
        "task": "model",
        "weights": f"local-dir:{given.weights}",
        "config": learn,
        "cache": cache,
        "resume": True,
        "callbacks": callbacks,
    }
    parent = train(files["kept"], place / "parent", **common)
    results: dict[str, dict[str, float]] = {"parent": {"old": parent.record.tasks[0].child.mean}}
    config = TrainingConfig(steps=150, eval_every=75, save_every=10_000, precision=given.precision, seed=seed)
    for count in map(str, SETS):
        for method in given.methods:
            request = Request(
                str(parent.out), files[count], "model", method, config, old_val=(files["kept"],), into=True
            )
            name = f"{count} added, {method}"
            results[name] = accuracies(
                run(request, place / f"{count}-{method}", cache=cache, resume=True, callbacks=callbacks)
            )
            print(seed, name, results[name], flush=True)
    everything = train(files["all"], place / "all", **common)
    results["retrained on all"] = {"old": accuracy_on(everything, files["kept"])}
    for count in map(str, SETS):
        results[f"{count} added, retrained"] = {"new": accuracy_on(everything, files[count])}
    return results


def table(runs: list[dict[str, dict[str, float]]]) -> str:
    """The results as Markdown, means and 95 % t-intervals over seeds."""
    lines = ["| | old classes | added ones |", "|---|---:|---:|"]
    for name in runs[0]:
        cells = []
        for key in ("old", "new"):
            mean, half = metrics.t_interval([run[name].get(key, float("nan")) for run in runs])
            width = "" if np.isnan(half) else f" ± {100 * half:.1f}"
            cells.append("–" if np.isnan(mean) else f"{100 * mean:.1f}{width}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=["frozen", "branch"])
    parser.add_argument("--precision", default="auto")
    given = parser.parse_args()
    runs: list[dict[str, dict[str, float]]] = []
    for seed in range(given.seeds):
        runs.append(once(seed, given))
        RESULTS.write_text(json.dumps({"versions": versions(), "steps": given.steps, "runs": runs}, indent=1))
    print(table(runs))


if __name__ == "__main__":
    main()
