"""One plain backbone for both tasks: `branch` and then `compress`, against a low learning rate and two models.

    .venv/bin/python benchmarks/one_backbone.py OUT PAIR [PAIR ...] --shared DIR --made DIR [--seeds 3]

The arguments are those of benchmarks/choosing.py. Accuracies are those of the last step, on the half of the validation
images that chose nothing: those whose SHA-256 is odd; settings were chosen on the other half. Share of the gap closed:
from fine-tuning at a tenth of the learning rate to two models, the parent and one fine-tuned on the new task alone.
Finished runs are not repeated; results/one_backbone.json keeps the numbers of every pair.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from choosing import PARENTS, request_of

from taskgraft import metrics
from taskgraft.config import COMPRESSION_DEFAULTS, TrainingConfig
from taskgraft.metrics import t_interval
from taskgraft.pipeline.request import CompressionRequest, Request
from taskgraft.pipeline.run import Extension, run
from taskgraft.results.predictions import Predictions
from taskgraft.results.record import versions
from taskgraft.types import Callbacks

RESULTS = Path(__file__).parent / "results" / "one_backbone.json"
HALVES = ("choosing", "reporting")  # by the last bit of the first byte of the SHA-256


def measure(done: Extension, request: Request, task: str) -> dict[str, dict[str, float]]:
    """Accuracy in percent of the old and the new task on each half of the validation images, at the last step."""
    folders = {"old": request.old_val, "new": (request.data,)}
    names = {"old": next((t.name for t in done.record.tasks if t.name != task), ""), "new": task}
    rates: dict[str, dict[str, float]] = {half: {} for half in HALVES}
    for kind, roots in folders.items():
        for suffix in ("", "-parent"):
            found = done.predictions.get(kind + suffix)
            if found is None or names[kind] not in found.classes:
                continue
            for half, rate in by_half(found, names[kind], roots).items():
                rates[half][kind + suffix] = rate
    return rates


def by_half(found: Predictions, task: str, roots: Sequence[Path]) -> dict[str, float]:
    """Percent of right answers on each half; the images are read for their SHA-256."""
    labeled = found.labels[task] >= 0
    odd = np.array([digest(name, roots) % 2 for name in found.ids])[labeled]
    hits = metrics.correct(found, task)
    return {half: 100 * float(hits[odd == number].mean()) for number, half in enumerate(HALVES)}


def digest(name: str, roots: Sequence[Path]) -> int:
    for root in roots:
        folder = root if root.is_dir() else root.parent
        if (folder / name).is_file():
            return hashlib.sha256((folder / name).read_bytes()).digest()[0]
    raise SystemExit(f"{name} is below none of {', '.join(map(str, roots))}")


def once(name: str, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """All runs of a pair with one seed."""
    callbacks, cache, place = Callbacks(), given.out / "cache", given.out / name / f"seed-{seed}"
    request = request_of(name, given.shared, given.made, given.out, callbacks)
    last = {"seed": seed, "eval_every": given.steps, "save_every": 10_000, "precision": given.precision}
    config = TrainingConfig(steps=given.steps, **last)
    steps = given.compression_steps
    compression = replace(COMPRESSION_DEFAULTS, **{**last, "steps": steps, "eval_every": steps})
    arms: dict[str, Request] = {
        "branch": replace(request, method="branch", config=config),
        "low rate": replace(request, method="finetune", config=replace(config, lr=config.lr / 10)),
        "B alone": replace(request, method="finetune", config=config, old_val=()),
    }
    results: dict[str, Any] = {}
    for arm, asked in arms.items():
        if arm not in given.arms:
            continue
        results[arm] = measure(
            run(asked, place / arm, cache=cache, resume=True, callbacks=callbacks), request, request.task
        )
        print(name, seed, arm, results[arm]["reporting"], flush=True)
    asked = CompressionRequest(place / "branch", request.data, old_val=request.old_val, config=compression)
    begun, busy = time.perf_counter(), time.process_time()
    done = run(asked, place / "compress", cache=cache, resume=True, callbacks=callbacks)
    results["compress"] = measure(done, request, request.task)
    results["compress"] |= {"seconds": time.perf_counter() - begun, "cpu_seconds": time.process_time() - busy}
    print(name, seed, "compress", results["compress"]["reporting"], round(results["compress"]["seconds"]), flush=True)
    return results


def summarize(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Means and 95 % t-intervals over seeds, on the reporting half; both ends of the gap are held at their means."""

    def over(arm: str, key: str) -> list[float]:
        return [run[arm]["reporting"][key] for run in runs]

    parent = over("branch", "old-parent")
    summary: dict[str, Any] = {"parent": t_interval(parent)}
    scores: dict[str, list[float]] = {}
    for arm in [arm for arm in ("low rate", "branch", "compress") if arm in runs[0]]:
        old, new = over(arm, "old"), over(arm, "new")
        scores[arm] = [(a + b) / 2 for a, b in zip(old, new, strict=True)]
        lost = [before - after for before, after in zip(parent, old, strict=True)]
        summary[arm] = {
            "old": t_interval(old), "new": t_interval(new), "score": t_interval(scores[arm]),
            "forgetting": t_interval(lost),
        }  # fmt: skip
    if "low rate" in scores and "B alone" in runs[0]:
        alone = over("B alone", "new")
        bound, floor = (np.mean(parent) + np.mean(alone)) / 2, np.mean(scores["low rate"])
        summary["B alone"] = t_interval(alone)
        for arm, reached in scores.items():
            summary[arm]["closed"] = t_interval([(score - floor) / (bound - floor) for score in reached])
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="+", choices=["cars-colours", *PARENTS])
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--made", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument(
        "--arms", nargs="+", default=["branch", "low rate", "B alone"], help="beside compress; branch must be one"
    )
    parser.add_argument("--steps", type=int, default=TrainingConfig().steps)
    parser.add_argument("--compression-steps", type=int, default=COMPRESSION_DEFAULTS.steps)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    for name in given.names:
        runs = []
        for seed in range(given.first_seed, given.first_seed + given.seeds):
            runs.append(once(name, seed, given))
            stored = json.loads(given.results.read_text()) if given.results.exists() else {}
            config = replace(COMPRESSION_DEFAULTS, steps=given.compression_steps)
            compression = {"config": config.__dict__, "method": CompressionRequest("", "").method}
            stored[name] = {"summary": summarize(runs), "runs": runs, **compression, "versions": versions()}
            given.results.write_text(json.dumps(stored, indent=1) + "\n")
        print(json.dumps(stored[name]["summary"], indent=1))


if __name__ == "__main__":
    main()
