"""The Fisher diagonal: rate, peak memory, and what it costs beside plain forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.speed import floors, memory
from benchmarks.speed.turns import Plan, Rival, close_houses, measure, open_houses
from benchmarks.speed.worker import House, ask

CASES = (
    {"arch": "resnet18", "size": 64, "batch": 32, "images": 256},
    {"arch": "resnet50", "size": 64, "batch": 32, "images": 128},
    {"arch": "tf_efficientnet_lite0", "size": 96, "batch": 32, "images": 128},
    {"arch": "vit_tiny_patch16_224", "size": 96, "batch": 32, "images": 128},
)
TOY = ({"arch": "test_resnet", "size": 32, "batch": 4, "images": 8},)
SLOW = 32  # images for the others, whose rates do not depend on how many there are
FEW = 8  # for the one whose every image costs as much as thirty of the others
REFERENCE = "forward + backward"
PEERS = ("backpack", "nngeometry", "curvlinops", "avalanche")
SECONDS = 35.0


def rivals(case: Mapping[str, Any]) -> tuple[Rival, ...]:
    """taskgraft, the floor of practice, and all others on fewer images."""
    few = {"images": min(SLOW, case["images"])}
    return (
        Rival("taskgraft", "taskgraft", "ours:fisher"),
        Rival(REFERENCE, "pytorch", "loops:forward_backward"),
        Rival("loop over images", "pytorch", "fisher_ways:loop", few),
        Rival("vmap(grad)", "pytorch", "fisher_ways:vmapped", few),
        *(
            Rival(name, name, f"fisher_ways:{name}", {"images": FEW, "chunk": FEW} if name == "curvlinops" else few)
            for name in PEERS
        ),
    )


def part(
    houses: Mapping[str, House], plan: Plan, peaks: Mapping[str, Any], absent: Mapping[str, str],
    say: Callable[[str], None],
) -> list[dict[str, Any]]:  # fmt: skip
    """A table for each network, with floors, and the peak of a fresh process for each way and for training."""
    workers = open_houses([houses[name] for name in ("taskgraft", "pytorch", *PEERS) if name in houses], plan)
    tables = []
    for case in TOY if plan.quick else CASES:
        say(f"{case['arch']} at {case['size']} px")
        shown = rivals(case)
        rows = measure(shown, workers, case, plan._replace(seconds=SECONDS), REFERENCE, say, absent)
        counted = ask(workers["pytorch"], do="once", function="floors:count", case={**case, "training": False})
        floor = floors.of_fisher(counted["value"], peaks, case["batch"], case["images"])
        tables.append({"case": case, "rows": rows, "floors": {"precision": "fp32", **floor}})
    close_houses(workers)
    for table in tables:
        say(f"peak memory, {table['case']['arch']}")
        _add_peaks(table, houses, plan, first=table is tables[0])
    return tables


def _add_peaks(table: dict[str, Any], houses: Mapping[str, House], plan: Plan, first: bool) -> None:
    """Each in a fresh process, on as many images; training in fp32 at the same batch for comparison.

    The others' peaks are taken on the first network alone: each costs a process.
    """
    case = table["case"]
    images = {**case, "images": min(2 * SLOW, case["images"])}
    for rival, row in zip(rivals(case), table["rows"], strict=True):
        if "error" not in row and (rival.name in ("taskgraft", REFERENCE) or first):
            row |= memory.peak_of(rival, houses[rival.house], {**images, **row["chose"]}, plan)
    training = Rival("training", "taskgraft", "ours:train", {"method": "finetune", "precision": "fp32"})
    table["training_peak"] = memory.peak_of(training, houses["taskgraft"], images, plan).get("peak")
