"""What the figures must show, and whether they do: one line for each demand, computed from the JSON alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from benchmarks.speed.plots import heading

Report = Mapping[str, Any]
Row = Mapping[str, Any]
SHARES = {"ewc": 0.95, "si": 0.90, "distill, recorded": 0.97, "distill, live": 0.74}
OVER_PLAIN = {64: 1.5, 128: 2.5}  # times the plain loop's rate, where the processor multiplies bf16 matrices
SAME = ("loop over images", "vmap(grad)", "backpack", "nngeometry")  # ways that compute the same quantity
FISHER_COST = {"resnet18": 1.8}  # times forward + backward; others 2.5
MATRIX_UNITS = {"amx_bf16"}


class Claim(NamedTuple):
    """One demand: what was measured, what is needed, and whether more or less is better."""

    what: str
    value: float
    needed: float
    at_most: bool = False

    @property
    def met(self) -> bool:
        """Whether the demand is met."""
        return self.value <= self.needed if self.at_most else self.value >= self.needed


def table(reports: Mapping[str, Report]) -> str:
    """All demands that the parts at hand can answer, as a table."""
    lines = ["### What was to be reached", "", "| | measured | needed | met |", "|---|---:|---:|---|"]
    for claim in all_of(reports):
        sign = "≤" if claim.at_most else "≥"
        lines.append(f"| {claim.what} | {claim.value:.3g} | {sign} {claim.needed:g} | {'yes' if claim.met else 'no'} |")
    return "\n".join(lines)


def all_of(reports: Mapping[str, Report]) -> Iterator[Claim]:
    """Every demand, part by part."""
    if "steps" in reports:
        for case in reports["steps"]["cases"]:
            yield from _steps(case, bool(MATRIX_UNITS & set(reports["steps"]["machine"]["units"])))
    if "fisher" in reports:
        for case in reports["fisher"]["cases"]:
            yield from _fisher(case)
    if "start" in reports:
        yield from _start(reports["start"])
    if "answering" in reports:
        for case in reports["answering"]["cases"]:
            for row in case["rows"]:
                if row["house"] != "taskgraft" and "share" in row:
                    what = f"{heading(case['case'])}: taskgraft's rate over {row['rival']}'s"
                    yield Claim(what, 1 / row["share"], 1.0)
    if "sharing" in reports:
        yield from _sharing(reports["sharing"])
    if "memory" in reports:
        for row in reports["memory"]["cases"][0]["rows"]:
            if row["rival"].startswith("ewc") and "method_over_weights" in row:
                yield Claim("memory that ewc adds, in weights", row["method_over_weights"], 2.0, True)


def _steps(case: Mapping[str, Any], matrix_units: bool) -> Iterator[Claim]:
    where, rows = heading(case["case"]), _by_name(case)
    for row in rows.values():
        if row["house"] == "taskgraft" or "share" not in row:
            continue
        needed = 1.0
        if row["rival"] == "plain fp32 loop" and matrix_units and case["case"]["arch"] == "resnet18":
            needed = OVER_PLAIN[case["case"]["size"]]
        if row["rival"] == "careful loop":
            needed = 0.98
        yield Claim(f"{where}: finetune over {row['rival']}", 1 / row["share"], needed)
    for ours, theirs in (("ewc", "EWC"), ("si", "SI"), ("distill, live", "LwF")):
        peer = rows.get(f"Avalanche {theirs}", {})
        if "share" in peer and "share" in rows[ours]:
            yield Claim(f"{where}: {ours} over Avalanche {theirs}", rows[ours]["share"] / peer["share"], 1.0)
    for name, needed in SHARES.items():
        if "share" in rows[name]:
            yield Claim(f"{where}: {name} as a share of finetune", rows[name]["share"], needed)


def _fisher(case: Mapping[str, Any]) -> Iterator[Claim]:
    where, rows = heading(case["case"]), _by_name(case)
    own = rows["taskgraft"]
    if "median" not in own:
        return
    others = {name: rows[name]["median"] for name in SAME if "median" in rows.get(name, {})}
    if others:
        best = max(others, key=lambda name: others[name])
        needed = 2.5 if case["case"]["arch"] == "resnet18" else 1.0
        yield Claim(f"Fisher, {where}: over the best of the others ({best})", own["median"] / others[best], needed)
    if "share" in own:
        needed = FISHER_COST.get(case["case"]["arch"], 2.5)
        yield Claim(f"Fisher, {where}: time over forward + backward", 1 / own["share"], needed, True)
    if case.get("training_peak") and "peak" in own:
        yield Claim(f"Fisher, {where}: peak memory over training's", own["peak"] / case["training_peak"], 2.0, True)


def _start(report: Report) -> Iterator[Claim]:
    for case in report["cases"]:
        for row in case["rows"]:
            if row["rival"] == "decoded in the second run":
                yield Claim("images decoded by the second run", row["decoded"], 0.0, True)
            if row["rival"].startswith("warm"):
                yield Claim(f"seconds to the first step, {row['rival']}", row["median"], 5.0, True)
            if row["rival"] == "taskgraft --help":
                yield Claim("seconds of taskgraft --help", row["median"], 0.5, True)
        lrs = {row["rival"]: row["median"] for row in case["rows"] if row.get("unit") == "images/s"}
        if "ImageFolder, 2 workers" in lrs and "taskgraft" in lrs:
            ratio = lrs["taskgraft"] / lrs["ImageFolder, 2 workers"]
            yield Claim("images decoded a second over ImageFolder's", ratio, 1.0)


def _sharing(report: Report) -> Iterator[Claim]:
    few, many = report["cases"][0]["rows"]
    for what, key in (("bytes shared", "shared_bytes"), ("peak memory", "peak")):
        claim = f"{what} of a search: {many['trials']} trials over {few['trials']}"
        yield Claim(claim, many[key] / max(few[key], 1), 1.05, True)


def _by_name(case: Mapping[str, Any]) -> dict[str, Row]:
    return {row["rival"]: row for row in case["rows"]}
