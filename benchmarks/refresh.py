"""A task learns another camera's images of its classes, without the old images: `refresh` against fine-tuning.

    .venv/bin/python benchmarks/refresh.py OUT --shared DIR [--seeds 3] [--images 1000]

The other camera is drawn from the same cars: darker, warmer and slightly out of focus. Training images of the new
kind are the first ones by SHA-256 of their names; validation images are all of the old ones, in both kinds. Accuracy
of the last step, and negative flips: the fraction that the parent had right and the child has wrong.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from dataclasses import replace
from pathlib import Path

from PIL import Image, ImageFilter

import taskgraft
from taskgraft.config import REFRESH_DEFAULTS
from taskgraft.metrics import t_interval
from taskgraft.results.record import versions

RESULTS = Path(__file__).parent / "results" / "refresh.json"
GAINS = (0.62, 0.5, 0.36)  # red, green, blue
BLUR = 0.012  # radius, as a fraction of the shorter side


def photograph(source: Path, target: Path) -> None:
    """Write what the other camera would have seen."""
    image = Image.open(source).convert("RGB")
    image = image.filter(ImageFilter.GaussianBlur(BLUR * min(image.size)))
    bands = [
        band.point(lambda value, gain=gain: round(value * gain))
        for band, gain in zip(image.split(), GAINS, strict=True)
    ]
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.merge("RGB", bands).save(target)


def draw(cars: Path, out: Path, images: int) -> Path:
    """Write the new kind of images: some for training, all of them for validation."""
    if not out.exists():
        train, val = ([file for file in (cars / split).rglob("*.*") if file.is_file()] for split in ("train", "val"))
        train.sort(key=lambda file: hashlib.sha256(file.name.encode()).digest())
        for file in [*train[:images], *val]:
            photograph(file, (out / file.relative_to(cars)).with_suffix(".png"))
    return out


def once(seed: int, given: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Refresh one parent in every way."""
    cars = given.shared / "data/cars"
    images = draw(cars, given.out / "camera", given.images)
    config = replace(REFRESH_DEFAULTS, steps=given.steps, seed=seed, eval_every=given.steps, precision=given.precision)
    results: dict[str, dict[str, float]] = {}
    for method in given.methods:
        done = taskgraft.refresh(
            given.shared / "checkpoints/cars196_tf_efficientnet_lite0.pth.tar", images,
            given.out / f"seed-{seed}" / (method or "default"), task="model", method=method, config=config,
            old_val=cars / "val", arch="tf_efficientnet_lite0", labels=given.shared / "checkpoints/cars196_labels.txt",
            preprocessing="96 squash bilinear imagenet", parent_task="model", cache=given.out / "cache", resume=True,
        )  # fmt: skip
        for task in done.record.tasks:
            kind = "new" if task.refreshes or task.new else "old"
            if task.parent and task.child:
                results.setdefault("parent", {})[kind] = 100 * task.parent.mean
                results.setdefault(method or "default", {})[kind] = 100 * task.child.mean
            if task.negative_flips:
                results[method or "default"][f"{kind} flips"] = 100 * task.negative_flips.mean
        print(seed, method or "default", results, flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--methods", nargs="+", default=["", "finetune"], help="'' is the default")
    parser.add_argument("--steps", type=int, default=REFRESH_DEFAULTS.steps)
    parser.add_argument("--precision", default="auto")
    given = parser.parse_args()
    runs = []
    for seed in range(given.seeds):
        runs.append(once(seed, given))
        RESULTS.write_text(json.dumps({"versions": versions(), "runs": runs}, indent=1) + "\n")
    for row in runs[0]:
        cells = {key: t_interval([run[row][key] for run in runs]) for key in runs[0][row]}
        print(row, {key: f"{mean:.1f} ± {half:.1f}" for key, (mean, half) in cells.items()})


if __name__ == "__main__":
    main()
