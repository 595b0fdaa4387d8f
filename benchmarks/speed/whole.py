"""A whole `extend`, from the call to a given Score: decoding, what a method remembers, steps and evaluations."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.speed.start import WORK
from benchmarks.speed.turns import Plan, open_houses, spread
from benchmarks.speed.worker import House, ask, stop

METHODS = ("finetune", "ewc", "distill", "taps", "branch")
SIZE, WANTED = 64, 0.80  # pixels; the Score whose time is taken
ROUNDS = 2


def part(houses: Mapping[str, House], plan: Plan, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """One table: for each method the seconds to the wanted Score and to the end, and the best Score."""
    WORK.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=WORK) as home:
        worker = open_houses([houses["taskgraft"]], plan)["taskgraft"]
        told = {"home": home, "quick": plan.quick}
        say("  the drawn cars and their parent")
        ask(worker, do="once", function="whole:prepare", case=told)
        found: dict[str, list[dict[str, Any]]] = {}
        for turn in range(1 if plan.quick else ROUNDS):
            for method in METHODS[-1:] if plan.quick else METHODS:
                say(f"  {method}, turn {turn + 1}")
                case = {**told, "method": method, "turn": turn}
                run = ask(worker, do="once", function="whole:extended", case=case)["value"]
                found.setdefault(method, []).append(run)
        stop(worker)
    rows = []
    for method, runs in found.items():
        row: dict[str, Any] = {"rival": method, "house": "taskgraft", "score": runs[0]["score"]}
        row["whole"] = spread([run["whole"] for run in runs])
        reached = [run["reached"] for run in runs if run["reached"] is not None]
        rows.append(row | ({"unit": "s", **spread(reached)} if reached else {}))
    case = {"what": f"Score {100 * WANTED:.0f} on drawn cars", "arch": "resnet18", "size": SIZE}
    return [{"case": case, "rows": rows}]


def prepare(case: Mapping[str, Any]) -> None:
    """Draw makes and paints, and train the parent on the makes."""
    from taskgraft import train
    from taskgraft.config import TrainingConfig
    from taskgraft.synthetic import write_cars

    home, few = Path(case["home"]), case["quick"]
    count: dict[str, Any] = {"train": 4 if few else 100, "val": 2 if few else 25, "size": SIZE}
    makes = write_cars(home / "makes", label="make", seed=1, camera="street", **count)
    write_cars(home / "paints", label="paint", seed=2, camera="factory", **count)
    run = TrainingConfig(steps=2 if few else 400, head_steps=0, precision="fp32" if few else "auto")
    train(makes, home / "parent", task="make", preprocessing=f"{SIZE} squash bilinear half", config=run)


def extended(case: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds of one `extend` without any kept pixels: to the wanted Score (None = never), and to its end."""
    from taskgraft import extend
    from taskgraft.config import Precision, TrainingConfig
    from taskgraft.metrics import score
    from taskgraft.types import Callbacks

    home, steps, lines = Path(case["home"]), 2 if case["quick"] else 150, []
    reached: list[float] = []
    begin = time.perf_counter()

    def logged(line: Any) -> None:
        lines.append(line)
        best = score(lines, ("make", "paint"))
        if not reached and best and best[0] >= WANTED:
            reached.append(time.perf_counter() - begin)

    arithmetic: Precision = "fp32" if case["quick"] else "auto"
    run = TrainingConfig(steps=steps, eval_every=max(1, steps // 10), head_steps=min(steps, 200), precision=arithmetic)
    out = home / f"{case['method']}-{case['turn']}"
    extend(
        home / "parent",
        home / "paints",
        out,
        task="paint",
        method=case["method"],
        config=run,
        old_val=[home / "makes"],
        check_parent=not case["quick"],  # two steps make a parent that guesses
        callbacks=Callbacks(on_metrics=logged),
    )
    whole = time.perf_counter() - begin
    best = score(lines, ("make", "paint"))
    reached_at = reached[0] if reached else None
    return {"whole": whole, "reached": reached_at, "score": round(100 * best[0], 1) if best else None}
