"""An image of each part: bars with the spread of their turns, lines for growth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib.axes import Axes
from matplotlib.figure import Figure

OURS, OTHERS = "#0b6e99", "#b8bcc2"
UNITS = {"s": "seconds", "images/s": "images a second", "MiB": "peak memory, MiB"}
Table = Mapping[str, Any]


def bars(file: Path, tables: Sequence[Table], title: str) -> None:
    """A panel for each table, a bar for each rival that could be measured, a whisker from its lowest to its highest."""
    figure = Figure(figsize=(9, 0.5 + sum(0.35 + 0.24 * len(_shown(table)) for table in tables)), layout="constrained")
    heights = [1 + len(_shown(table)) for table in tables]
    axes = figure.subplots(len(tables), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, table in zip(axes, tables, strict=True):
        _panel(axis, table)
    figure.suptitle(title, fontsize=11)
    figure.savefig(file, dpi=100, metadata={"Software": None})


def lines(file: Path, tables: Sequence[Table], title: str) -> None:
    """A panel for each axis of growth: time an image against its first point."""
    names = list(dict.fromkeys(table["case"]["axis"] for table in tables))
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots(1, len(names), squeeze=False, sharey=True)[0]
    for axis, name in zip(axes, names, strict=True):
        own = [table for table in tables if table["case"]["axis"] == name]
        points = [table["case"]["point"] for table in own]
        places = range(len(points))
        for rival in [row["rival"] for row in own[0]["rows"]]:
            lrs = [next(row for row in table["rows"] if row["rival"] == rival).get("median") for table in own]
            if all(lrs):
                axis.plot(places, [lrs[0] / lr for lr in lrs], marker="o", markersize=3, label=rival)
        axis.set_xticks(places, [f"{p:,}" if isinstance(p, int) else str(p) for p in points], rotation=30, fontsize=7)
        axis.set_title(name, fontsize=9)
        axis.grid(alpha=0.3)
    axes[0].set_ylim(bottom=0)  # shared, so not before all panels are drawn
    axes[0].set_ylabel("time an image, first point = 1", fontsize=8)
    axes[-1].legend(fontsize=7)
    figure.suptitle(title, fontsize=11)
    figure.savefig(file, dpi=100, metadata={"Software": None})


def _shown(table: Table) -> list[Mapping[str, Any]]:
    return [row for row in table["rows"] if "median" in row]


def _panel(axis: Axes, table: Table) -> None:
    rows = _shown(table)[::-1]
    middle = [row["median"] for row in rows]
    reach = [
        [row["median"] - row["low"] for row in rows],
        [row["high"] - row["median"] for row in rows],
    ]
    colors = [OURS if row["house"] == "taskgraft" else OTHERS for row in rows]
    axis.barh([row["rival"] for row in rows], middle, xerr=reach, color=colors, ecolor="#333333", height=0.7)
    axis.set_title(heading(table["case"]), fontsize=9, loc="left")
    axis.tick_params(labelsize=8)
    axis.set_xlabel(UNITS[rows[0]["unit"]] if rows else "", fontsize=8)
    axis.grid(axis="x", alpha=0.3)


def heading(case: Mapping[str, Any]) -> str:
    """What a table is of, in words."""
    parts = [str(case[key]) for key in ("what", "arch") if key in case]
    parts += [f"{case['size']} px"] if "size" in case else []
    parts += [f"batch {case['batch']}"] if "batch" in case else []
    parts += [f"{case['images']:,} images"] if "images" in case else []
    return ", ".join(parts)
