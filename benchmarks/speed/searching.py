"""What the trials of a search share: bytes on disk and peak memory, with few trials and with many."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.speed import pictures
from benchmarks.speed.start import WORK, watched
from benchmarks.speed.turns import Plan, open_houses
from benchmarks.speed.worker import House, ask, stop

TRIALS = (2, 10)
METHOD = (
    "ewc(strength=1..1000, images=64) + distill(strength=0.1..10)"  # Fisher, anchor and answers: all that is shared
)
SIZE, STEPS = 64, 4


def part(houses: Mapping[str, House], plan: Plan, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """One table: for each number of trials the copies of what is shared, their bytes, the peak and the seconds."""
    count, side = (40, 64) if plan.quick else (300, pictures.SIDE)
    WORK.mkdir(parents=True, exist_ok=True)
    folder = pictures.written(WORK / f"drawn-{count}-{side}", count, side)
    rows = []
    with tempfile.TemporaryDirectory(dir=WORK) as home:
        parent = Path(home) / "parent.pth"
        worker = open_houses([houses["pytorch"]], plan)["pytorch"]
        ask(worker, do="once", function="files:write_parent", case={"path": str(parent)})
        stop(worker)
        for trials in (1, 2) if plan.quick else TRIALS:
            say(f"  {trials} trials")
            out = Path(home) / f"trials-{trials}"
            ended = watched(_command(parent, folder, out, trials), None)
            shared = [file.stat().st_size for file in (out / "shared").glob("*.safetensors")]
            rows.append({
                "rival": f"{trials} trials", "house": "taskgraft", "trials": trials, "seconds": round(ended.seconds, 1),
                "peak": ended.peak, "shared_files": len(shared), "shared_bytes": sum(shared),
            })  # fmt: skip
    return [{"case": {"what": "search", "arch": "resnet18", "size": SIZE, "images": count}, "rows": rows}]


def _command(parent: Path, folder: Path, out: Path, trials: int) -> list[str]:
    return [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "taskgraft.cli",
        "tune",
        str(parent),
        str(folder),
        str(out),
        "--task",
        "paint",
        "--method",
        METHOD,
        "--trials",
        str(trials),
        "--prune",
        "no",
        "--sampler",
        "random",
        "--arch",
        "resnet18",
        "--labels",
        str(parent.with_suffix(".txt")),
        "--preprocessing",
        f"{SIZE} squash bilinear half",
        "--steps",
        str(STEPS),
        "--eval-every",
        str(STEPS),
        "--head-steps",
        "0",
        "--batch-size",
        "16",
        "--views",
        "1",
        "--precision",
        "fp32",
        "--cache",
        str(out.parent / "cache"),
    ]
