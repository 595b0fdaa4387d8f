"""Twenty car models withheld from a parent, then added with their images alone, against retraining on all.

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
WITHHELD = 20
ARMS = ("frozen", "distill", "branch", "finetune")


def tables(shared: Path, out: Path) -> tuple[Path, Path, Path]:
    """Tables of the 176 kept models, of the 20 withheld ones (every ninth by name), and of all."""
    pictures = out / "cars"
    if not pictures.exists():
        shutil.copytree(shared / "data/cars", pictures)
    rows = list(csv.DictReader((pictures / "manifest.csv").open()))
    names = sorted({row["model"] for row in rows})
    held = set(names[4 :: len(names) // WITHHELD][:WITHHELD])
    written = []
    for name, preprocessing in (("kept", set(names) - held), ("withheld", held), ("all", set(names))):
        path = pictures / f"{name}.csv"
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "model", "split"])
            writer.writerows((row["path"], row["model"], row["split"]) for row in rows if row["model"] in preprocessing)
        written.append(path)
    return written[0], written[1], written[2]


def balanced(done: Extension) -> dict[str, float]:
    """Accuracy on the old classes and on the added ones, each among all classes, and the mean over all images."""
    old, new = (metrics.correct(done.predictions[name], "model") for name in ("old", "new"))
    return {"old": float(old.mean()), "new": float(new.mean()), "all": float(np.concatenate([old, new]).mean())}


def whole(done: Extension, withheld: Path) -> dict[str, float]:
    """The same for a model trained on all classes at once."""
    names = {row["model"] for row in csv.DictReader(withheld.open())}
    found = done.predictions["new"]
    hits = metrics.correct(found, "model")
    added = np.array([found.classes["model"][label] in names for label in found.labels["model"]])
    return {"old": float(hits[~added].mean()), "new": float(hits[added].mean()), "all": float(hits.mean())}


def once(seed: int, given: argparse.Namespace) -> dict[str, dict[str, float]]:
    """One parent, extended in every way, and one model trained on all classes."""
    kept, withheld, every = tables(given.shared, given.out)
    callbacks, cache, place = Callbacks(), given.out / "cache", given.out / f"seed-{seed}"
    learn = replace(TRAIN_DEFAULTS, steps=given.steps, eval_every=200, precision=given.precision, seed=seed)
    source = f"local-dir:{given.weights}"
    common = {
        "task": "model",
        "weights": source,
        "config": learn,
        "cache": cache,
        "resume": True,
        "callbacks": callbacks,
    }
    parent = train(kept, place / "parent", **common)
    results: dict[str, dict[str, float]] = {"parent": {"old": parent.record.tasks[0].child.mean}}
    config = TrainingConfig(steps=150, eval_every=75, save_every=10_000, precision=given.precision, seed=seed)
    for method in ARMS:
        request = Request(str(parent.out), withheld, "model", method, config, old_val=(kept,), into=True)
        results[method] = balanced(run(request, place / method, cache=cache, resume=True, callbacks=callbacks))
        print(seed, method, results[method], flush=True)
    results["retrained on all"] = whole(train(every, place / "all", **common), withheld)
    print(seed, "all", results["retrained on all"], flush=True)
    return results


def table(runs: list[dict[str, dict[str, float]]]) -> str:
    """The results as Markdown, means and 95 % t-intervals over seeds."""
    lines = ["| | old 176 | new 20 | all |", "|---|---:|---:|---:|"]
    for name in runs[0]:
        cells = []
        for key in ("old", "new", "all"):
            mean, half = metrics.t_interval([config[name].get(key, float("nan")) for config in runs])
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
    parser.add_argument("--precision", default="auto")
    given = parser.parse_args()
    runs: list[dict[str, dict[str, float]]] = []
    for seed in range(given.seeds):
        runs.append(once(seed, given))
        RESULTS.write_text(json.dumps({"versions": versions(), "steps": given.steps, "runs": runs}, indent=1))
    print(table(runs))


if __name__ == "__main__":
    main()
