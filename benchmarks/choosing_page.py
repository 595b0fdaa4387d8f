"""Write the tables and figures of docs/choosing.md from results/choosing.json and results/chain.json.

    .venv/bin/python benchmarks/choosing_page.py

Replaces what stands between the markers in docs/choosing.md and the images beside it.
"""

from __future__ import annotations

import json
from math import isnan
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from scipy.stats import spearmanr

from taskgraft.metrics import t_interval

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
RESULTS, CHAIN, PAGE = HERE / "results/choosing.json", HERE / "results/chain.json", HERE.parent / "docs/choosing.md"
BEGIN, END = "<!-- {}: made by benchmarks/choosing_page.py -->", "<!-- end of {} -->"
LINKS = {
    "model": "cars",
    "colour": "colours",
    "garment": "Fashion 0-4",
    "even": "even digits",
    "footwear": "Fashion 5-9",
}
TITLES = {
    "cars-colours": "cars (196 models) → colours; EfficientNet-Lite0, 96 px, a foreign checkpoint",
    "cars-colours, 300 steps": "the same at 300 steps: what each method does when nothing is tuned",
    "makes-colours": "makes → colours on the cars' own images, disjoint halves; EfficientNet-Lite0",
    "fashion": "Fashion-MNIST classes 0-4 → 5-9; ResNet-18, 32 px",
    "fashion-vit": "Fashion-MNIST classes 0-4 → 5-9; ViT-tiny, 64 px, trained from nothing",
    "digits": "digits even → odd (scikit-learn); a small ResNet, 32 px",
}
ACROSS = 3  # panels in a row of the figure
HEAD = ("method", "seeds", "Score", "A", "B", "forgetting", "closed", "agreement", "parameters", "FLOPs", "seconds")


def points(pair: list[float] | None) -> str:
    if pair is None:
        return "–"
    mean, half = pair
    return f"{100 * mean:.1f}" if half is None or isnan(half) else f"{100 * mean:.1f} ± {100 * half:.1f}"


def fraction_closed(pair: list[float] | None) -> str:
    """How much of the gap is closed; a method below its lower end closes nothing, and by how much says little."""
    return "< 0" if pair is not None and pair[0] < -0.005 else points(pair)


def table(name: str, found: dict[str, Any]) -> list[str]:
    alone = [value for values in found["separate"].values() for value in values]
    lines = [f"### {TITLES[name]}", ""]
    if alone:
        lines += [
            f"A model for B alone, four times the steps: {100 * np.mean(alone):.1f} "
            f"(best step, {len(alone)} seed{'s' * (len(alone) > 1)}).",
            "",
        ]
    lines += ["| " + " | ".join(HEAD) + " |", "|---|" + "---:|" * (len(HEAD) - 1)]
    for row in sorted(found["rows"], key=lambda row: -row["score"][0]):
        cells = [
            (fraction_closed if key == "closed" else points)(row.get(key))
            for key in ("score", "old", "new", "forgetting", "closed", "agreement")
        ]
        cells += [f"{row['parameters']:.2f}", f"{row['arithmetic']:.2f}", f"{row['seconds']:.0f}"]
        lines.append(f"| {row['label']} | {row['seeds']} | " + " | ".join(cells) + " |")
    if found.get("separate_last"):
        last = "; ".join(
            f"{row['label']} {points(row['last'])}, closed {fraction_closed(row['closed_last'])}"
            for row in sorted(found["rows"], key=lambda row: -row["last"][0])
        )
        lines += ["", f"Score at the last step, where no evaluation is the best of many: {last}."]
        lines += [f"The models for B alone end at {points(list(t_interval(found['separate_last'])))}."]
    return [*lines, *[f"\nFailed: {label}: {reason}" for label, reason in found["failures"]], ""]


def frontier(stored: dict[str, Any], path: Path) -> None:
    """Old accuracy kept against new accuracy, a panel for each pair."""
    rows = -(-len(stored) // ACROSS)
    figure, axes = plt.subplots(rows, ACROSS, figsize=(4.2 * ACROSS, 4.2 * rows), squeeze=False)
    labels = list(dict.fromkeys(row["label"] for found in stored.values() for row in found["rows"]))
    shown = {}
    for axis in axes.flat[len(stored) :]:
        axis.remove()
    for axis, (name, found) in zip(axes.flat, stored.items(), strict=False):
        for row in found["rows"]:
            number = labels.index(row["label"])
            style = {"marker": "os^Dv<>Pp*hX"[number % 12], "color": f"C{number % 10}", "s": 45}
            shown[row["label"]] = axis.scatter(-100 * row["forgetting"][0], 100 * row["new"][0], **style)
        axis.margins(0.15)
        axis.set_title(name)
        axis.set_xlabel("change of A (points)")
        axis.set_ylabel("accuracy of B (%)")
        axis.grid(alpha=0.3)
    figure.legend(shown.values(), shown.keys(), fontsize=8, loc="lower center", ncols=8)
    figure.tight_layout(rect=(0, 0.1 / rows, 1, 1))
    figure.savefig(path, dpi=110)


def calibration(stored: dict[str, Any], path: Path) -> float:
    """Agreement lost on new images against accuracy truly lost; returns the rank correlation over the runs.

    Runs whose old answers cannot change are left out of it: they agree and forget nothing by construction.
    """
    figure, axis = plt.subplots(figsize=(6, 5))
    everything: list[tuple[float, float]] = []
    for name, found in stored.items():
        pairs = [(100 * p["lost_agreement"], 100 * p["forgetting"]) for p in found["proxies"]]
        everything += pairs
        axis.scatter(*np.array(pairs).T, label=name, s=18)
    top = max(value for pair in everything for value in pair)
    axis.plot([0, top], [0, top], linewidth=0.8, color="grey", label="if the proxy were exact")
    axis.set_xlabel("agreement lost on the new task's images (points)")
    axis.set_ylabel("accuracy of A truly lost (points)")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    moved = np.array([pair for pair in everything if pair[0] > 0])
    return float(spearmanr(moved[:, 0], moved[:, 1])[0])


def chain(stored: dict[str, Any]) -> list[str]:
    """Each task of the chain in the end and, in brackets, when it was learnt; means and intervals over seeds."""
    runs = stored["runs"]
    lines = ["| method | " + " | ".join(LINKS.values()) + " |", "|---|" + "---:|" * len(LINKS)]
    alone = [[run["separate"].get(task, run["chains"]["branch"][0].get(task)) for run in runs] for task in LINKS]
    lines.append("| alone | " + " | ".join(points(list(t_interval(values))) for values in alone) + " |")
    for method in runs[0]["chains"]:
        cells = []
        for number, task in enumerate(LINKS):
            end, begin = ([run["chains"][method][place][task] for run in runs] for place in (-1, number))
            learned = f" ({100 * np.mean(begin):.1f})" if number + 1 < len(LINKS) else ""
            cells.append(points(list(t_interval(end))) + learned)
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return [*lines, "", f"{len(runs)} seed{'s' * (len(runs) > 1)}, {stored['steps']} steps a task.", ""]


def put(name: str, lines: list[str]) -> None:
    """Replace what stands between the markers of that name in the page."""
    begin, end = BEGIN.format(name), END.format(name)
    before, _, rest = PAGE.read_text().partition(begin)
    _, _, after = rest.partition(end)
    PAGE.write_text(before + "\n".join([begin, "", *lines, end]) + after)


def main() -> None:
    stored = json.loads(RESULTS.read_text())
    stored = {name: stored[name] for name in TITLES if name in stored}
    rank = calibration(stored, PAGE.with_name("agreement.png"))
    frontier(stored, PAGE.with_name("frontier.png"))
    lines = [line for name, found in stored.items() for line in table(name, found)]
    lines += [
        "Rank correlation between lost agreement and true forgetting, over the runs above whose old predictions "
        f"can change: {rank:.2f}.",
        "",
    ]
    put("tables", lines)
    put("chain", chain(json.loads(CHAIN.read_text())))


if __name__ == "__main__":
    main()
