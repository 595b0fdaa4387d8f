"""Class prevalences of samples with shifted prevalences: naive counts, corrected ones, and how often intervals hold.

    .venv/bin/python benchmarks/distribution.py CHILD [--draws 20] [--first 1000]

CHILD is the folder of an extension of cars (task "model", measured on its 873 validation images) with colours (task
"colour", 358): its predictions.npz is all that is read. Makes are the first words of the models' names. Cells are:

- "halves", 50 and 200 images: the images are halved by class; the task card is measured on one half, the sample is
  drawn from the other with replacement;
- "simulated", 500 and 2,000 images, for which there are too few real ones: card and sample are drawn from the logits of
  all images by class, with Gaussian noise of 0.5 of their own.

Prevalences: those of the card ("none"), or from a symmetric Dirichlet of 10 (a slight shift), 1, 0.3 and 0.1. Errors
are of the prevalence that the sample was drawn with; coverage is of the 95 % intervals, over classes and draws. The
rule of "auto" was chosen on other draws (seeds of their own). CPU seconds, no image is opened.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from taskgraft.pipeline.measuring import build_task_card
from taskgraft.quantification import Sample, estimate_prevalence
from taskgraft.results.predictions import Predictions, load_predictions
from taskgraft.results.record import versions

RESULTS = Path(__file__).parent / "results" / "distribution.json"
NOISE = 0.5  # of simulated logits
SEEN = 0.01  # classes with at least this prevalence are also reported alone
ESTIMATORS = ("naive", "pacc", "emq", "auto")
SHIFTS = (0.0, 10.0, 1.0, 0.3, 0.1)  # concentration of the Dirichlet; 0 = the card's own prevalences


class Cell(NamedTuple):
    """A task, where its images come from, how many are drawn, and how far their prevalences are shifted."""

    task: str
    source: str  # "halves" or "simulated"
    images: int
    concentration: float


def build(predictions: Predictions, task: str, labels: NDArray[np.int64], logits: NDArray[np.float32]) -> Predictions:
    names = tuple(str(number) for number in range(len(labels)))
    return Predictions({task: predictions.classes[task]}, "per-task", names, {task: labels}, {task: logits})


def makes(predictions: Predictions) -> Predictions:
    """Models joined to makes: the log of the sum of exponents of a make's logits is its logit."""
    first = [name.split("_")[0] for name in predictions.classes["model"]]
    names = tuple(sorted(set(first)))
    place = np.array([names.index(name) for name in first])
    logits = predictions.logits["model"].astype(np.float64)
    joined = np.stack([np.logaddexp.reduce(logits[:, place == row], axis=1) for row in range(len(names))], axis=1)
    labels = np.where(predictions.labels["model"] >= 0, place[predictions.labels["model"]], -1)
    return Predictions({"make": names}, "per-task", predictions.ids, {"make": labels}, {"make": joined.astype("f4")})


def halved(labels: NDArray[np.int64], rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of two halves, class by class."""
    first = np.zeros(len(labels), bool)
    for k in np.unique(labels[labels >= 0]):
        rows = rng.permutation(np.flatnonzero(labels == k))
        first[rows[: (len(rows) + int(rng.integers(2))) // 2]] = True
    return np.flatnonzero(first & (labels >= 0)), np.flatnonzero(~first & (labels >= 0))


def draw_logits(
    logits: NDArray[np.float32], labels: NDArray[np.int64], wanted: NDArray[np.int64], noise: float,
    rng: np.random.Generator,
) -> NDArray[np.float32]:  # fmt: skip
    """Logits of a random image of each wanted class, with noise of their own."""
    order = np.argsort(labels, kind="stable")
    counts = np.bincount(labels, minlength=logits.shape[1])
    starts = np.cumsum(counts) - counts
    rows = order[starts[wanted] + (rng.random(len(wanted)) * counts[wanted]).astype(int)]
    return (logits[rows] + noise * rng.normal(size=(len(wanted), logits.shape[1]))).astype("f4")


def run(cell: Cell, predictions: Predictions, draws: range) -> dict[str, dict[str, float]]:
    """Means over draws of each estimator's error, coverage and width."""
    task, size = cell.task, len(predictions.classes[cell.task])
    labeled = predictions.labels[task] >= 0
    labels, logits = predictions.labels[task][labeled], predictions.logits[task][labeled]
    found: dict[str, list[tuple[float, ...]]] = {}
    for draw in draws:
        rng = np.random.default_rng([draw, size, cell.images, int(100 * cell.concentration)])
        if cell.source == "halves":
            known, rest = halved(labels, rng)
            card_labels, card_logits = labels[known], logits[known]
            pool, noise = (logits[rest], labels[rest]), 0.0
        else:
            card_labels = rng.choice(labels, len(labels))
            card_logits = draw_logits(logits, labels, card_labels, NOISE, rng)
            pool, noise = (logits, labels), NOISE
        card = build_task_card(build(predictions, task, card_labels, card_logits), task, {}, "a half")
        prevalence = np.bincount(pool[1], minlength=size) / len(pool[1])
        if cell.concentration:
            prevalence = rng.dirichlet(np.full(size, cell.concentration)) * (prevalence > 0)
            prevalence /= prevalence.sum()
        wanted = rng.choice(size, cell.images, p=prevalence)
        sampled = build(predictions, task, wanted, draw_logits(*pool, wanted, noise, rng))
        unit, weights = np.arange(cell.images), np.full(cell.images, 1 / cell.images)
        for name in ESTIMATORS:
            result = estimate_prevalence(Sample(sampled, unit, weights, "image"), task, card, name)
            estimate, low, high = (
                np.array([getattr(one, key) for one in result.classes]) for key in ("prevalence", "low", "high")
            )
            held = (low <= prevalence + 1e-9) & (prevalence <= high + 1e-9)
            seen = prevalence >= SEEN
            found.setdefault(name, []).append(
                (
                    100 * np.abs(estimate - prevalence).mean(),
                    100 * held.mean(),
                    100 * held[seen].mean() if seen.any() else np.nan,
                    100 * (high - low)[seen].mean() if seen.any() else np.nan,
                )
            )
    keys = ("error", "coverage", "coverage_seen", "width_seen")
    return {
        name: dict(zip(keys, (round(float(value), 3) for value in np.nanmean(rows, axis=0)), strict=True))
        for name, rows in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("child", type=Path)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--first", type=int, default=1000, help="seed of the first draw")
    parser.add_argument("--tasks", default="colour,make,model")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    sets = load_predictions(arguments.child / "predictions.npz")
    sources = {"colour": sets["new"], "make": makes(sets["old"]), "model": sets["old"]}
    content = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    results = content.get("cells", {})
    for task in arguments.tasks.split(","):
        for source, sizes in {"halves": (50, 200), "simulated": (500, 2000)}.items():
            for cell in [Cell(task, source, images, shift) for images in sizes for shift in SHIFTS]:
                begun = time.process_time()
                shift = f"Dirichlet {cell.concentration:g}" if cell.concentration else "no shift"
                name = f"{task}, {source}, {cell.images} images, {shift}"
                values = run(cell, sources[task], range(arguments.first, arguments.first + arguments.draws))
                results[name] = {"draws": arguments.draws, **values}
                print(f"{name}: {time.process_time() - begun:.0f} s", values, flush=True)
                arguments.out.parent.mkdir(parents=True, exist_ok=True)
                text = {"first": arguments.first, "versions": versions(), "cells": results}
                arguments.out.write_text(json.dumps(text, indent=1) + "\n")


if __name__ == "__main__":
    main()
