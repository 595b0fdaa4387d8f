"""A warm start on a few and on very many images: time to the first batch, and memory, which should not grow.

    .venv/bin/python benchmarks/large.py

Data sets of 30,000, 1,000,000 and 1,300,000 images of 128 px are simulated: their cache is a sparse file that takes no
disk, the set is written as taskgraft writes it after a first run, and the images are empty files in folders (as many
as --folders allows) or empty tar shards of 1,000. What is measured is taskgraft's own start, in a process for each.
Writes benchmarks/results/large.json. Linux only: memory is read from /proc.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from taskgraft import data
from taskgraft.data import Dataset, Preprocessing, decode, file_index, open_images
from taskgraft.data.dataset import SNAPSHOT_FORMAT, save_snapshot
from taskgraft.data.layouts import list_images
from taskgraft.data.pixel_cache import geometry_folder, map_pixels
from taskgraft.results.files import fingerprint
from taskgraft.types import Images, Task, TrainingData

CLASSES = tuple(f"n{number:08d}" for number in range(1000))
TASK = "kind"
BATCH = 64
PER_SHARD = 1000


def wanted_of(size: int) -> Preprocessing:
    return Preprocessing(size, "center", 0.875, "bilinear")


def names_of(layout: str, count: int) -> Iterator[str]:
    for number in range(count):
        if layout == "shards":
            yield f"train/shard-{number // PER_SHARD:06d}.tar/{number:08d}.jpg"
        else:
            yield f"train/{CLASSES[number % 1000]}/{CLASSES[number % 1000]}_{number:08d}.jpg"


def simulate(root: Path, layout: str, count: int, size: int) -> None:
    """A data folder without contents, and the cache that a first run on it would have left."""
    place, cache, validation = root / "data", root / "cache", 10_000
    files = sorted({name.split(".tar/")[0] + ".tar" for name in names_of(layout, count)}) if layout == "shards" else (
        names_of(layout, count)
    )  # fmt: skip
    for folder in CLASSES if layout == "folders" else ("",):
        (place / "train" / folder).mkdir(parents=True, exist_ok=True)
    for name in files:
        os.close(os.open(place / name, os.O_CREAT | os.O_WRONLY))
    preprocessing, task = wanted_of(size), Task(TASK, CLASSES)
    home = geometry_folder(cache, preprocessing)
    home.mkdir(parents=True)
    with (home / "simulated.u8").open("wb") as file:
        file.truncate(count * size * size * 3)
    np.lib.format.open_memmap(home / "simulated.npy", mode="w+", dtype=np.uint8, shape=(count, 32)).flush()
    pixels = map_pixels(home, "simulated", count, size)
    assert pixels is not None
    names, labels = list(names_of(layout, count)), torch.arange(count) % 1000
    parts = (slice(0, count - validation), slice(count - validation, count))
    train, val = (
        Images(
            pixels[part],
            {TASK: labels[part]},
            file_index.pack_names(names[part]),
            preprocessing.mean,
            preprocessing.std,
        )
        for part in parts
    )
    found = Dataset((task,), train, val, None, (), layout, "simulated", 0, ())
    state = file_index.read_data_state(place)
    assert state is not None
    parts = [SNAPSHOT_FORMAT, decode.VERSION, str(place.resolve()), preprocessing.to_text()]
    parts += map(repr, [TASK, 0, None, (), None])
    snapshot = cache / "sets" / f"{fingerprint(parts)[:32]}.safetensors"
    save_snapshot(snapshot, state.signature, found, "simulated")


def memory() -> dict[str, int]:
    """MiB: all that is resident, what of it cannot be dropped, what is mapped from files, and the peak."""
    ctypes.CDLL(None).malloc_trim(0)  # what is free already is not counted
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return {
        name: int(lines[key].split()[0]) // 1024
        for name, key in (("resident", "VmRSS"), ("own", "RssAnon"), ("mapped", "RssFile"), ("peak", "VmHWM"))
    }


def start(root: Path, size: int, batches: int) -> dict[str, Any]:
    """What a second start does up to its first batches."""
    before, begin = memory(), time.perf_counter()
    found = open_images(root / "data", TASK, wanted_of(size), seed=0, cache_folder=root / "cache")
    opened = time.perf_counter() - begin
    assert found.train is not None
    assert found.decoded == 0
    sources = TrainingData(found.train, None, 8, "shift+flip", 0)
    data.build_batch(sources, 0, BATCH)
    first = time.perf_counter() - begin
    for step in range(1, batches):
        data.build_batch(sources, step, BATCH)
    after = memory()
    return {
        "seconds_to_open": round(opened, 3), "seconds_to_first_batch": round(first, 3),
        "mib_before": before, "mib_after": after, "mib_added": after["resident"] - before["resident"],
        "mib_added_own": after["own"] - before["own"],
    }  # fmt: skip


def listing(root: Path) -> dict[str, Any]:
    """What a first run holds of each file before it has read any."""
    before, begin = memory(), time.perf_counter()
    found = list_images(root / "data", TASK)
    took, after, count = time.perf_counter() - begin, memory(), len(found.entries)
    grown = (after["own"] - before["own"]) * 2**20 / count
    return {"files": count, "seconds": round(took, 2), "bytes_a_file": round(grown)}


def apart(*arguments: str) -> dict[str, Any]:
    """The answer of this script in a process of its own."""
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", default="30000,1000000,1300000", help="images")
    parser.add_argument("--folders", type=int, default=1_000_000, help="most files that are really made")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "large.json")
    parser.add_argument("--do", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.do:
        root = Path(options.do[1])
        print(json.dumps(start(root, options.size, options.batches) if options.do[0] == "start" else listing(root)))
        return
    results = []
    common = ["--size", str(options.size), "--batches", str(options.batches)]
    for layout in ("shards", "folders"):
        for count in map(int, options.counts.split(",")):
            if layout == "folders" and count > options.folders:
                continue
            root = Path(tempfile.mkdtemp(prefix="large-"))
            try:
                simulate(root, layout, count, options.size)
                rounds = [apart("--do", "start", str(root), *common) for _ in range(options.rounds)]
                result = {"layout": layout, "images": count, **sorted(rounds, key=_first)[len(rounds) // 2]}
                result["seconds_of_rounds"] = [one["seconds_to_first_batch"] for one in rounds]
                if layout == "folders":
                    result["first_run_listing"] = apart("--do", "listing", str(root))
            finally:
                shutil.rmtree(root)
            results.append(result)
            print(json.dumps(result, indent=1))
    report = {
        "command": f"python benchmarks/large.py --counts {options.counts} --folders {options.folders}",
        "what": "a second start, median of the rounds; own = memory that the system cannot drop; a size of "
        f"{options.size} px makes {options.size**2 * 3 * 1_300_000 / 2**30:.0f} GiB of pixels of 1.3 million images",
        "machine": {"cores": os.cpu_count(), "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * 4096 / 2**30, 1)},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "results": results,
    }
    options.out.write_text(json.dumps(report, indent=1) + "\n")


def _first(one: dict[str, Any]) -> float:
    return one["seconds_to_first_batch"]


if __name__ == "__main__":
    main()
