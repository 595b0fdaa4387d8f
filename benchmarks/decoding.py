"""Decoding: threads against processes, and JPEGs at a reduced scale against full decoding.

    .venv/bin/python benchmarks/decoding.py [FOLDER OF PICTURES]

Without a folder, cars are drawn. The second part enlarges 24 of the images to the size of photographs and adds grain,
so that there is detail to lose. Differences are in grey levels of 255 at training size. Writes
benchmarks/results/decoding.json.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from taskgraft.data import decode, pixel_cache
from taskgraft.data.transforms import Preprocessing, parse_preprocessing
from taskgraft.synthetic import MAKES, PAINTS, draw_car

GRAIN = 6.0  # standard deviation of the noise of enlarged images, in grey levels
FEW = 24
INPUTS = ("96 squash bilinear", "128 squash bilinear", "224 center:0.875 bicubic")
WANTED = parse_preprocessing("96 squash bilinear", Preprocessing())


def pictures(folder: Path | None, count: int, place: Path) -> list[Path]:
    if folder is None:
        for number in range(count):
            make, paint = MAKES[number % len(MAKES)], PAINTS[number % len(PAINTS)]
            Image.fromarray(draw_car(make, paint, number, 192)).save(place / f"{number:05d}.jpg", quality=90)
        folder = place
    found = sorted(folder.rglob("*.jpg"))
    return [found[row] for row in np.linspace(0, len(found) - 1, min(count, len(found))).astype(int)]


def one(path: Path) -> NDArray[np.uint8] | None:
    return decode.decode_file(path, WANTED).pixels


def lrs(files: Sequence[Path], rounds: int) -> dict[str, float]:
    """Images per second, the median of the rounds, turn by turn."""
    cores = os.cpu_count() or 1
    names = [str(path) for path in files]

    def threads() -> None:
        with ThreadPoolExecutor(cores) as pool:
            list(pool.map(one, files))

    with ProcessPoolExecutor(cores) as pool:
        list(pool.map(one, files[: 4 * cores]))
        ways: dict[str, Callable[[], object]] = {
            "one after another": lambda: [one(path) for path in files],
            f"{cores} threads, one image at a time": threads,
            f"{cores} threads, as taskgraft does": lambda: pixel_cache.load_pixels(Path("/"), names, WANTED),
            f"{cores} processes": lambda: list(pool.map(one, files, chunksize=pixel_cache.GROUP)),
        }
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                begin = time.perf_counter()
                way()
                taken[name].append(len(files) / (time.perf_counter() - begin))
    return {name: round(statistics.median(found), 1) for name, found in taken.items()}


def enlarged(path: Path, side: int) -> bytes:
    """An image as a camera might give it: longest side `side`, with grain, quality 92."""
    image = Image.open(path).convert("RGB")
    factor = side / max(image.size)
    image = image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.LANCZOS)
    grain = np.random.default_rng(0).normal(0, GRAIN, (image.height, image.width, 3))
    image, found = Image.fromarray((np.asarray(image) + grain).clip(0, 255).astype(np.uint8)), io.BytesIO()
    image.save(found, "JPEG", quality=92)
    return found.getvalue()


def reduced(blobs: Sequence[bytes], side: int, line: str, rounds: int) -> dict[str, Any]:
    """Milliseconds an image and difference from full decoding, for each OVERSAMPLING."""
    preprocessing = parse_preprocessing(line, Preprocessing())
    spares = (10**6, 4, 3, 2, 1)
    taken: dict[int, list[float]] = {spare: [] for spare in spares}
    pixels: dict[int, NDArray[np.int16]] = {}
    for _ in range(rounds):
        for spare in spares:
            decode.OVERSAMPLING = spare
            begin = time.perf_counter()
            found = [decode.decode_bytes(blob, preprocessing).pixels for blob in blobs]
            taken[spare].append((time.perf_counter() - begin) / len(blobs))
            pixels[spare] = np.stack([one for one in found if one is not None]).astype(np.int16)
    rows = {}
    for spare in spares:
        off = np.abs(pixels[spare] - pixels[spares[0]])
        rows["full" if spare == spares[0] else str(spare)] = {
            "ms": round(1e3 * statistics.median(taken[spare]), 2), "mean": round(float(off.mean()), 3),
            "p99": float(np.percentile(off, 99)), "max": int(off.max()),
        }  # fmt: skip
    return {"side": side, "input": line, "spare": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--count", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "decoding.json")
    options = parser.parse_args()
    own = decode.OVERSAMPLING
    with tempfile.TemporaryDirectory() as place:
        files = [path.absolute() for path in pictures(options.folder, options.count, Path(place))]
        speed = lrs(files, options.rounds)
        few = files[:: max(1, len(files) // FEW)][:FEW]
        scales = []
        for side in (192, 800, 1600, 3200):
            blobs = [enlarged(path, side) for path in few]
            scales += [reduced(blobs, side, line, options.rounds) for line in INPUTS]
    report = {
        "command": "python " + " ".join(["benchmarks/decoding.py", *(["FOLDER"] if options.folder else [])]),
        "machine": {"cores": os.cpu_count()},
        "versions": {"python": platform.python_version(), "pillow": PIL.__version__},
        "chosen": own,
        "images_per_second": speed,
        "reduced_scale": scales,
    }
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    json.dump(report, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
