"""How taskgraft's own work grows: with images, classes, parameters and tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.speed.turns import Plan, Rival, close_houses, measure, open_houses
from benchmarks.speed.worker import House

BASE = {"arch": "resnet18", "size": 32, "batch": 32, "images": 256, "precision": "fp32-channels-last"}
TOY = {"arch": "test_resnet", "size": 32, "batch": 4, "images": 8, "precision": "fp32"}
AXES: dict[str, tuple[Any, ...]] = {
    "images": (1_000, 10_000, 100_000),
    "classes": (10, 1_000, 10_000),
    "arch": ("resnet10t", "resnet18", "resnet50"),
    "tasks": (1, 5, 20),
}
SHORT: dict[str, tuple[Any, ...]] = {"images": (8, 16), "classes": (10, 100), "tasks": (1, 3)}
FEW = {"images": 128}  # for what goes through all its images at every call
WORK = (
    Rival("finetune", "taskgraft", "ours:train", {"method": "finetune"}),
    Rival("ewc", "taskgraft", "ours:train", {"method": "ewc(images=64)"}),
    Rival("distill, recorded", "taskgraft", "ours:train", {"method": "distill"}),
    Rival("Fisher", "taskgraft", "ours:fisher", FEW),
    Rival("evaluation", "taskgraft", "ours:evaluate", FEW),
)
# Recording all answers first would be the time measured; the Fisher and the evaluation take as many as they are given.
OVER_IMAGES = WORK[:2]
SECONDS = 3.0


def part(houses: Mapping[str, House], plan: Plan, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """A table for each point of each axis; rates as shares of the axis's first point are the reader's."""
    workers = open_houses([houses["taskgraft"]], plan)
    tables = []
    for axis, points in (SHORT if plan.quick else AXES).items():
        for point in points:
            say(f"{axis} {point}")
            case = {**(TOY if plan.quick else BASE), axis: point}
            if axis in ("tasks", "classes"):
                case["classes_each"] = 10 if axis == "tasks" else point
            work = OVER_IMAGES if axis == "images" else WORK
            rows = measure(
                work, workers, case, plan._replace(seconds=SECONDS, turn=0.3), "finetune", lambda _: None, {}
            )
            tables.append({"case": {**case, "axis": axis, "point": point}, "rows": rows})
    close_houses(workers)
    return tables
