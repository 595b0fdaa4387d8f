"""A chain of five tasks without any old image: what each step forgets, against fine-tuning and separate models.

    .venv/bin/python benchmarks/chain.py OUT --shared DIR --made DIR [--steps 200] [--seeds 1] [--methods NAME …]
        [--tasks 4] [--compression-steps 900]

cars (196 models) -> colours -> Fashion-MNIST 0-4 -> even digits -> Fashion-MNIST 5-9, on one EfficientNet-Lite0, 96 px.
Every extension sees the images of its own task alone; validation images of all earlier tasks measure it. "compress" is
`branch` compressed to one plain backbone after every task, "compress + images" the same with 1,000 unlabeled images of
cars, and as many of every task learned so far, whose labels are not read.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path

from taskgraft.config import COMPRESSION_DEFAULTS, TrainingConfig
from taskgraft.pipeline.request import CompressionRequest, Request
from taskgraft.pipeline.run import run
from taskgraft.results.record import versions
from taskgraft.types import Callbacks

RESULTS = Path(__file__).parent / "results" / "chain.json"
METHODS = ("finetune", "distill + ewc", "branch", "ladder", "compress", "compress + images")
UNLABELED = 1000  # images of each earlier task


def tasks(shared: Path, made: Path) -> list[tuple[str, Path]]:
    return [
        ("colour", shared / "data/colours"),
        ("garment", made / "fashion/a"),
        ("even", made / "digits/a"),
        ("footwear", made / "fashion/b"),
    ]


def first(shared: Path) -> Request:
    return Request(
        str(shared / "checkpoints/cars196_tf_efficientnet_lite0.pth.tar"),
        Path(),
        "",
        arch="tf_efficientnet_lite0",
        labels=shared / "checkpoints/cars196_labels.txt",
        preprocessing="96 squash bilinear imagenet",
        parent_task="model",
    )


def chain(
    method: str, config: TrainingConfig, given: argparse.Namespace, callbacks: Callbacks
) -> list[dict[str, float]]:
    """Accuracy of every task after every step, oldest first; the first entry is the parent's."""
    request, cars = first(given.shared), given.shared / "data/cars/val"
    seen: tuple[Path, ...] = (cars,)
    found: list[dict[str, float]] = []
    for name, data in tasks(given.shared, given.made)[: given.tasks]:
        place = given.out / method.replace(" ", "") / f"seed-{config.seed}" / name
        compressed = method.startswith("compress")
        asked = replace(
            request, data=data, task=name, method="branch" if compressed else method, config=config, old_val=seen
        )
        if compressed:
            teacher, place = place / "teacher", place / "plain"
            run(asked, teacher, cache=given.out / "cache", resume=True, callbacks=callbacks)
            settings = replace(
                COMPRESSION_DEFAULTS, steps=given.compression_steps, eval_every=given.compression_steps,
                save_every=10_000, seed=config.seed, precision=config.precision,
            )  # fmt: skip
            earlier = [given.shared / "data/cars/train", *(root / "train" for root in seen[1:])]
            asked = CompressionRequest(
                teacher, data, old_val=seen, config=settings, check_parent=False,
                unlabeled=[sample(root, given.out / "unlabeled") for root in earlier] if "images" in method else (),
            )  # fmt: skip
        done = run(asked, place, cache=given.out / "cache", resume=True, callbacks=callbacks)
        before = {task.name: task.parent.mean for task in done.record.tasks if task.parent}
        found = found or [before]
        found.append({task.name: task.child.mean for task in done.record.tasks if task.child})
        print(method, name, {task: round(100 * value, 1) for task, value in found[-1].items()}, flush=True)
        # a method that forgets leaves parents that guess: that is what is measured
        request, seen = Request(place, Path(), "", check_parent=False), (*seen, data)
    return found


def sample(root: Path, out: Path) -> Path:
    """A flat folder of evenly spaced images, named by number alone."""
    folder = out / "-".join(root.parts[-3:])
    files = sorted(path for path in root.rglob("*") if path.suffix in (".jpg", ".png"))
    chosen = files[:: max(1, len(files) // UNLABELED)][:UNLABELED]
    if not folder.exists():
        folder.mkdir(parents=True)
        for number, path in enumerate(chosen):
            shutil.copyfile(path, folder / f"{number:04d}{path.suffix}")
    return folder


def separate(config: TrainingConfig, given: argparse.Namespace, callbacks: Callbacks) -> dict[str, float]:
    """Each task learnt alone from the same checkpoint with twice the steps."""
    found = {}
    for name, data in tasks(given.shared, given.made)[: given.tasks]:
        place = given.out / "separate" / f"seed-{config.seed}" / name
        asked = replace(
            first(given.shared), data=data, task=name, method="finetune", config=replace(config, steps=2 * config.steps)
        )
        done = run(asked, place, cache=given.out / "cache", resume=True, callbacks=callbacks)
        found[name] = max(line.accuracy.get(name, 0.0) for line in done.record.history)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--made", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--tasks", type=int, default=4, help="only the first of those after the cars")
    parser.add_argument("--compression-steps", type=int, default=COMPRESSION_DEFAULTS.steps)
    parser.add_argument("--no-separate", action="store_true", help="no models for each task alone")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    callbacks = Callbacks()
    stored: dict[str, object] = {"versions": versions(), "steps": given.steps, "runs": []}
    for seed in range(given.first_seed, given.first_seed + given.seeds):
        every = max(1, given.steps // 2)
        config = TrainingConfig(
            steps=given.steps, eval_every=every, save_every=10_000, seed=seed, precision=given.precision
        )
        runs = {method: chain(method, config, given, callbacks) for method in given.methods}
        stored["runs"] = [
            *stored["runs"],
            {
                "seed": seed,
                "chains": runs,
                "separate": {} if given.no_separate else separate(config, given, callbacks),
            },
        ]
        given.results.write_text(json.dumps(stored, indent=1))


if __name__ == "__main__":
    main()
