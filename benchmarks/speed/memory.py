"""What each method holds between steps, exactly; and how far a rival lifts the peak of a fresh process."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.speed.turns import Plan, Rival
from benchmarks.speed.worker import House, Refused, ask, found, start, stop

METHODS = ("finetune", "distill", "distill(teacher=live)", "l2sp", "ewc(images=64)", "mas", "si", "branch")
CASE = {"arch": "resnet18", "size": 64, "batch": 64, "images": 256}
TOY = {"arch": "test_resnet", "size": 32, "batch": 4, "images": 8, "precision": "fp32"}


def part(houses: Mapping[str, House], plan: Plan, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """One case: bytes of weights, optimizer and method for each method, and the peak of its steps and of others'."""
    case = TOY if plan.quick else CASE
    rows = []
    for method in METHODS[:: 3 if plan.quick else 1]:
        say(f"  {method}")
        told = {**case, "method": method}
        counted = _alone(houses["taskgraft"], plan, "ours:held", told)
        peak = _alone(houses["taskgraft"], plan, "memory:growth", told | {"maker": "ours:train"})
        rows.append({"rival": method, **_cost(counted), **peak})
    for rival in (
        Rival("plain fp32 loop", "pytorch", "loops:plain"),
        Rival("careful loop", "careful", "loops:careful"),
    ):
        say(f"  {rival.name}")
        rows.append({"rival": rival.name, **peak_of(rival, houses[rival.house], case, plan)})
    return [{"case": case, "rows": rows}]


def peak_of(rival: Rival, house: House, case: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """{"peak": bytes} of a rival in a process of its own, or {"error": reason}."""
    return _alone(house, plan, "memory:growth", {**case, **rival.options, "maker": rival.maker})


def growth(case: Mapping[str, Any]) -> dict[str, int]:
    """How far preparing a rival and two calls lift the peak of the resident memory above what the imports hold."""
    importlib.import_module(f"benchmarks.speed.{case['maker'].split(':')[0]}")
    with contextlib.suppress(OSError):  # forget the peak of the imports, where the system lets us
        Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    ready = found(case["maker"])(case)
    for _ in range(2):
        ready.call()
    return {"peak": _status("VmHWM") - before}


def _alone(house: House, plan: Plan, function: str, case: Mapping[str, Any]) -> dict[str, Any]:
    worker = start(house, here=plan.quick and house.python == House("here").python)
    try:
        return ask(worker, do="once", function=function, case=case)["value"]
    except Refused as reason:
        return {"error": str(reason)}
    finally:
        stop(worker)


def _cost(counted: Mapping[str, Any]) -> dict[str, Any]:
    if "error" in counted:
        return dict(counted)
    held = {name: counted[name] for name in ("weights", "optimizer", "method")}
    return {**held, "method_over_weights": round(held["method"] / held["weights"], 3), "note": counted["precision"]}


def _status(name: str) -> int:
    """A line of /proc/self/status in bytes (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def summary(cases: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Method's own bytes over the weights', by method."""
    return {row["rival"]: row["method_over_weights"] for row in cases[0]["rows"] if "method_over_weights" in row}
