"""The training step: taskgraft's methods, the loops that people write, timm's script, Avalanche's strategies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.speed import floors
from benchmarks.speed.turns import Plan, Rival, close_houses, measure, open_houses
from benchmarks.speed.worker import House, ask

CASES = (
    {"arch": "resnet18", "size": 64, "batch": 64, "images": 256},
    {"arch": "resnet18", "size": 128, "batch": 64, "images": 192},
    {"arch": "tf_efficientnet_lite0", "size": 128, "batch": 32, "images": 128},
)
TOY = ({"arch": "test_resnet", "size": 32, "batch": 4, "images": 8, "precision": "fp32"},)
OURS = {
    "finetune": "finetune",
    "ewc": "ewc(images=64)",
    "ewc, explicit": "ewc(images=64, implicit=False, strength=1.0)",
    "si": "si",
    "distill, recorded": "distill",
    "distill, live": "distill(teacher=live)",
}
RIVALS = (
    *(Rival(name, "taskgraft", "ours:train", {"method": method}) for name, method in OURS.items()),
    Rival("finetune, shifted and flipped", "taskgraft", "ours:train", {"method": "finetune", "augment": "shift+flip"}),
    Rival("plain fp32 loop", "pytorch", "loops:plain"),
    Rival("careful loop", "careful", "loops:careful"),
    Rival("timm's script", "pytorch", "loops:timm_script"),
    *(
        Rival(f"Avalanche {name}", "avalanche", "avalanche_loops:train", {"strategy": name})
        for name in ("Naive", "EWC", "LwF", "SI")
    ),
)
SECONDS = 110.0  # for the rounds of one case


def part(
    houses: Mapping[str, House], plan: Plan, peaks: Mapping[str, Any], absent: Mapping[str, str],
    say: Callable[[str], None],
) -> list[dict[str, Any]]:  # fmt: skip
    """A table for each network and size, with the two floors."""
    preprocessing = [houses[name] for name in ("taskgraft", "pytorch", "careful", "avalanche") if name in houses]
    workers = open_houses(preprocessing, plan)
    tables = []
    for case in TOY if plan.quick else CASES:
        say(f"{case['arch']} at {case['size']} px, batch {case['batch']}")
        rows = measure(RIVALS, workers, case, plan._replace(seconds=SECONDS), "finetune", say, absent)
        counted = ask(workers["pytorch"], do="once", function="floors:count", case=case)["value"]
        precision = next((row["note"] for row in rows if row["rival"] == "finetune"), "fp32")
        floor = floors.of_step(counted, peaks, case["batch"], precision)
        tables.append({"case": case, "rows": rows, "floors": {"precision": precision, **floor}})
    close_houses(workers)
    return tables
