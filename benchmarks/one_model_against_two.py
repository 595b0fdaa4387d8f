"""One extended model against two separate ones in turn: images a second and peak memory of `predict`.

    .venv/bin/python benchmarks/one_model_against_two.py OUT --images DIR --first MODEL --second MODEL \
        --child branch=FOLDER --child distill=FOLDER [--count 2000] [--turns 5]

`--first` and `--second` are bundles of the two tasks alone (what two people would run); each `--child` a bundle that
does both. "branch" costs nearly two backbones and can save decoding alone; a child on one backbone ("distill", "ewc")
saves the second pass as well. Turn by turn: the two in turn, then each child, `--turns` times; medians. Every run is a
process of its own, so that peak memory is its own; time counts from the first image to the last, without start-up.
Measured twice: with decoding (files), and on decoded pixels, where only the networks count.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from itertools import cycle, islice
from pathlib import Path

from taskgraft.results.record import versions

RESULTS = Path(__file__).parent / "results" / "one_model_against_two.json"
WARM = 64  # images that are answered before the clock starts


def pictures(root: Path, count: int, out: Path) -> Path:
    """A list of `count` paths, the images of a folder again and again as copies by link: no path stands twice."""
    files = sorted(path for path in root.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not files:
        raise SystemExit(f"{root} holds no images")
    home = out / "images"
    home.mkdir(parents=True, exist_ok=True)
    for number, file in enumerate(islice(cycle(files), count)):
        link = home / f"{number:06d}{file.suffix}"
        if not link.exists():
            link.symlink_to(file.resolve())
    listed = out / "images.txt"
    listed.write_text("".join(f"{path}\n" for path in sorted(home.iterdir())[:count]))
    return listed


def worker(models: list[str], listed: Path, decoded: bool) -> None:
    """Answer all images with each model in turn, and print seconds and the peak of this process's memory."""
    from taskgraft import Callbacks
    from taskgraft.commands.predict import PredictOptions, Predictor
    from taskgraft.data import streaming
    from taskgraft.data.streaming import StreamedImage

    paths = listed.read_text().splitlines()
    items, total = streaming.find_media(paths).items, 0.0
    for model in models:
        predictor = Predictor(model, PredictOptions(), Callbacks())
        streamed = predictor.stream(items)
        ready = [StreamedImage(name, pixels, None) for name, pixels, *_ in streamed] if decoded else []

        def predict(images: Iterable[StreamedImage]) -> int:
            batches = predictor.predict(images)  # noqa: B023 - called in this turn
            return sum(len(predictor.row_format.rows(found)) for _, found in batches if found)  # noqa: B023

        predict(predictor.stream(items[:WARM]))
        begun = time.perf_counter()
        count = predict(ready if decoded else streamed)
        total += time.perf_counter() - begun
        assert count == len(paths), f"{len(paths) - count} images could not be read"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": total, "peak_mib": peak}))


def run(models: list[str], listed: Path, decoded: bool) -> dict[str, float]:
    words = [sys.executable, __file__, "--worker", str(listed), *(["--decoded"] if decoded else []), *models]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def together(models: list[str], listed: Path, decoded: bool) -> dict[str, float]:
    """Two models one after the other, each in a process of its own; both would have to stay loaded to serve."""
    parts = [run([model], listed, decoded) for model in models]
    return {"seconds": sum(one["seconds"] for one in parts), "peak_mib": sum(one["peak_mib"] for one in parts)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--first", required=True)
    parser.add_argument("--second", required=True)
    parser.add_argument("--child", action="append", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    listed = pictures(arguments.pictures, arguments.count, arguments.out)
    children = dict(text.split("=", 1) for text in arguments.child)
    two = [arguments.first, arguments.second]
    results = {}
    for decoded in (False, True):
        kind = "decoding excluded" if decoded else "decoding included"
        found: dict[str, list[dict[str, float]]] = {}
        for turn in range(arguments.turns):
            found.setdefault("two in turn", []).append(together(two, listed, decoded))
            found.setdefault("two in one process", []).append(run(two, listed, decoded))
            for name, folder in children.items():
                found.setdefault(name, []).append(run([folder], listed, decoded))
            print(f"{kind}, turn {turn + 1}:", {name: round(rows[-1]["seconds"], 2) for name, rows in found.items()})
        table = {
            name: {key: statistics.median(row[key] for row in rows) for key in ("seconds", "peak_mib")}
            | {"images_a_second": arguments.count / statistics.median(row["seconds"] for row in rows)}
            for name, rows in found.items()
        }
        for name in children:
            for key, what in (("seconds", "times_faster"), ("peak_mib", "times_less_memory")):
                table[name][what] = table["two in turn"][key] / table[name][key]
            table[name]["times_less_memory_than_two_in_one_process"] = (
                table["two in one process"]["peak_mib"] / table[name]["peak_mib"]
            )
        results[kind] = table
        for name, row in table.items():
            print(f"  {name:<20}", {key: round(value, 2) for key, value in row.items()}, flush=True)
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    text = {"count": arguments.count, "turns": arguments.turns, "versions": versions(), "results": results}
    arguments.results.write_text(json.dumps(text, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        flag = "--decoded" in sys.argv
        worker([word for word in sys.argv[3:] if word != "--decoded"], Path(sys.argv[2]), flag)
    else:
        main()
