"""Class shares of samples with shifted shares: naive counts against corrected ones, and how often intervals hold.

    .venv/bin/python benchmarks/distribution.py CHILD [--draws 200]

CHILD is the folder of an extension of cars (task "model", measured on its 873 validation images) with colours (task
"colour", 358): its predictions.npz is all that is read. In each draw the images are halved by class; the task card
is measured on one half, the sample is drawn from the other, by one of two schemes:

- "drawn": shares p from a symmetric Dirichlet, 500 images with replacement (an image may return: few are there);
- "thinned": each class is kept with its own probability, no image returns; about 90 of 180, or 150 of 436.

Errors are those of the shares against the sample's own labels (what the footage shows) and against p (what it is a
sample of); coverage is of p. Makes are the first words of the models' names. CPU seconds, no image is opened.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from taskgraft import seeding
from taskgraft.pipeline.measuring import build_task_card
from taskgraft.quantification import Sample, estimate_prevalence
from taskgraft.results.predictions import Predictions, load_predictions
from taskgraft.results.record import versions

RESULTS = Path(__file__).parent / "results" / "distribution.json"
SIZE = 500
FRAMES = 12  # of a simulated track
SEEN = 0.01  # classes with at least this share are also reported alone
ESTIMATORS = ("naive", "pacc", "emq")


class Case(NamedTuple):
    """A task, a way to draw, and from where."""

    name: str
    task: str
    scheme: str  # "drawn", "thinned" or "tracks"
    concentration: float


def part(predictions: Predictions, task: str, rows: NDArray[np.int64]) -> Predictions:
    return Predictions(
        {task: predictions.classes[task]}, predictions.softmax, tuple(predictions.ids[row] for row in rows),
        {task: predictions.labels[task][rows]}, {task: predictions.logits[task][rows]},
    )  # fmt: skip


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


def drawn(
    case: Case, labels: NDArray[np.int64], size: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Places in `labels` that are sampled, the unit of each, and the shares p that they are a sample of."""
    have = np.bincount(labels, minlength=size)
    if case.scheme == "thinned":
        chance = rng.random(size) ** 2
        chance /= chance[have > 0].max()
        rows = np.flatnonzero(rng.random(len(labels)) < chance[labels])
        return rows, np.arange(len(rows)), have * chance / (have * chance).sum()
    shares = rng.dirichlet(np.full(size, case.concentration)) * (have > 0)
    shares /= shares.sum()
    preprocessing = rng.choice(size, SIZE, p=shares)
    rows = np.array([rng.choice(np.flatnonzero(labels == k)) for k in preprocessing])
    if case.scheme == "drawn":
        return rows, np.arange(SIZE), shares
    return np.repeat(rows, FRAMES), np.repeat(np.arange(SIZE), FRAMES), shares


def frames_of(logits: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Frames of a track: the image's logits with a little noise of their own."""
    return logits + rng.normal(0, 0.3, logits.shape).astype("f4")


def run(case: Case, predictions: Predictions, draws: int) -> dict[str, dict[str, float]]:
    """Means over draws of each estimator's errors and coverage."""
    task, size = case.task, len(predictions.classes[case.task])
    found: dict[str, list[tuple[float, ...]]] = {}
    for draw in range(draws):
        rng = seeding.generator(draw, "distribution benchmark", case.name)
        known, rest = halved(predictions.labels[task], rng)
        made = build_task_card(part(predictions, task, known), task, {}, "one half")
        places, unit, shares = drawn(case, predictions.labels[task][rest], size, rng)
        sampled = part(predictions, task, rest[places])
        if case.scheme == "tracks":
            sampled = sampled._replace(logits={task: frames_of(sampled.logits[task], rng)})
        real = np.bincount(sampled.labels[task], minlength=size) / len(places)
        ways = ESTIMATORS if case.scheme != "tracks" else ("emq", "emq, frames as images")
        for way in ways:
            own = np.arange(len(unit)) if way.endswith("images") else unit
            weights = np.full(len(own), 1 / len(own))
            kind = "track" if len(own) > own.max() + 1 else "image"
            result = estimate_prevalence(Sample(sampled, own, weights, kind), task, made, way.split(",")[0])  # pyright: ignore
            share, low, high = (np.array([getattr(one, key) for one in result.classes]) for key in
                                ("share", "low", "high"))  # fmt: skip
            held = (low <= shares + 1e-9) & (shares <= high + 1e-9)
            inside = (low <= real + 1e-9) & (real <= high + 1e-9)
            seen = shares >= SEEN
            found.setdefault(way, []).append(
                (
                    np.abs(share - real).mean(),
                    np.abs(share - shares).mean(),
                    held.mean(),
                    held[seen].mean() if seen.any() else np.nan,
                    inside.mean(),
                    (high - low)[seen].mean(),
                    result.effective_size,
                )
            )
    keys = ("error_sample", "error_p", "coverage", "coverage_seen", "coverage_sample", "width_seen", "effective")
    return {
        way: dict(zip(keys, (round(float(value), 4) for value in np.nanmean(rows, axis=0)), strict=True))
        for way, rows in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("child", type=Path)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--only", default="")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    sets = load_predictions(arguments.child / "predictions.npz")
    sources = {"colour": sets["new"], "make": makes(sets["old"]), "model": sets["old"]}
    schemes = [("drawn", 0.1), ("drawn", 0.3), ("drawn", 1.0), ("thinned", 0.0), ("tracks", 0.3)]
    results = {}
    for task, predictions in sources.items():
        for scheme, concentration in schemes:
            name = f"{task}, {scheme}" + (f", Dirichlet({concentration})" if concentration else "")
            if arguments.only not in name or (scheme == "tracks" and task == "model"):
                continue
            begun = time.process_time()
            results[name] = run(Case(name, task, scheme, concentration), predictions, arguments.draws)
            print(f"{name}: {time.process_time() - begun:.0f} s", flush=True)
            for way, numbers in results[name].items():
                print(f"  {way:<24}", numbers, flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    text = {"draws": arguments.draws, "versions": versions(), "results": results}
    arguments.out.write_text(json.dumps(text, indent=1) + "\n")


if __name__ == "__main__":
    main()
