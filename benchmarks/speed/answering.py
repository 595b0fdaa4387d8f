"""Answers: evaluation on decoded pixels, and prediction from files."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.speed import pictures
from benchmarks.speed.start import SIZE, WORK
from benchmarks.speed.turns import Plan, Rival, close_houses, measure, open_houses
from benchmarks.speed.worker import House, ask

CASES = (
    {"arch": "resnet18", "size": 128, "batch": 64, "images": 512, "what": "evaluation"},
    {"arch": "tf_efficientnet_lite0", "size": 128, "batch": 64, "images": 512, "what": "evaluation"},
)
TOY = ({"arch": "test_resnet", "size": 32, "batch": 4, "images": 8, "what": "evaluation"},)
RIVALS = (
    Rival("taskgraft", "taskgraft", "ours:evaluate"),
    Rival("plain fp32 loop", "pytorch", "loops:validate"),
    Rival("careful loop", "careful", "loops:validate_carefully"),
    Rival("Avalanche eval", "avalanche", "avalanche_loops:evaluate"),
)
FILES = (
    Rival("taskgraft predict", "taskgraft", "files:predict"),
    Rival("ImageFolder and a plain loop", "pytorch", "files:predict_plainly"),
)
SECONDS = 30.0


def part(
    houses: Mapping[str, House], plan: Plan, absent: Mapping[str, str], say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Tables of evaluation, and one of prediction from JPEG files."""
    names = ("taskgraft", "pytorch", "careful", "avalanche")
    workers = open_houses([houses[name] for name in names if name in houses], plan)
    tables = []
    for case in TOY if plan.quick else CASES:
        say(f"evaluation, {case['arch']}")
        rows = measure(RIVALS, workers, case, plan._replace(seconds=SECONDS), "taskgraft", say, absent)
        tables.append({"case": case, "rows": rows})
    count, side = (24, 64) if plan.quick else (600, pictures.SIDE)
    folder = pictures.written(WORK / f"drawn-{count}-{side}", count, side)
    home = WORK / "answering"
    home.mkdir(parents=True, exist_ok=True)
    parent = home / "parent.pth"
    ask(workers["pytorch"], do="once", function="files:write_parent", case={"path": str(parent)})
    case = {
        "folder": str(folder),
        "parent": str(parent),
        "size": SIZE,
        "images": count,
        "what": "prediction from files",
    }
    say("prediction from files")
    rows = measure(FILES, workers, case, plan._replace(seconds=SECONDS), "taskgraft predict", say, absent)
    close_houses(workers)
    shutil.rmtree(home)
    shown = {key: value for key, value in case.items() if key not in ("folder", "parent")}
    return [*tables, {"case": {**shown, "arch": "resnet18"}, "rows": rows}]
