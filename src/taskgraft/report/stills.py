"""The founding text's three figures as PNG files, drawn by matplotlib without touching its global state."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from taskgraft.record import Comparison, atomic
from taskgraft.report.charts import Chart, Curve, Panel
from taskgraft.report.history import founding_figures
from taskgraft.report.looks import LIGHT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DASHES = {"solid": "-", "dash": (0, (5, 2)), "dot": (0, (1, 1.5)), "dashdot": (0, (5, 1.5, 1, 1.5))}
MARKERS = {
    "circle": "o",
    "square": "s",
    "diamond": "D",
    "triangle-up": "^",
    "x": "X",
    "cross": "P",
    "star": "*",
    "triangle-down": "v",
}
WIDTH = 8.0  # inches; at 160 dots an inch the file is 1280 pixels wide
DOTS = 160


def write_figures(comparison: Comparison, folder: Path) -> list[Path]:
    """Write figure1.png, figure2.png and figure3.png into `folder`, without those that have no data."""
    paths = []
    for chart in founding_figures(comparison):
        path = folder / f"{chart.key}.png"
        with warnings.catch_warnings(), atomic(path) as aside:
            # a name in a script that the built-in font lacks is drawn as boxes: no reason to stop or to speak
            warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
            draw(chart).savefig(aside, format="png", metadata={"Software": None})
        paths.append(path)
    return paths


def draw(chart: Chart) -> Figure:
    """A chart as a matplotlib figure."""
    from matplotlib.figure import Figure

    height = 1.6 + 2.9 * len(chart.panels)
    figure = Figure(figsize=(WIDTH, height), dpi=DOTS, layout="constrained", facecolor="white")
    grid = figure.subplots(len(chart.panels), 1, sharex=True, squeeze=False)
    for axes, panel in zip(grid[:, 0], chart.panels, strict=True):
        _panel(axes, panel, chart)
    grid[-1, 0].set_xlabel("step", color=LIGHT["ink"])
    figure.suptitle(literal(chart.title), x=0.01, ha="left", fontsize=13, fontweight="bold", color=LIGHT["ink"])
    _legend(figure, list(grid[:, 0]))
    return figure


def _panel(axes: Axes, panel: Panel, chart: Chart) -> None:
    for one in panel.curves:
        _curve(axes, one, panel.unit)
    axes.set_xlim(chart.start, chart.end + 0.015 * (chart.end - chart.start))
    axes.set_ylabel(panel.axis, color=LIGHT["ink"])
    if panel.unit:
        axes.set_ylim(-2, 102)
    if panel.title:
        axes.set_title(literal(panel.title), loc="left", fontsize=10.5, color=LIGHT["ink"])
    if chart.mark is not None:
        axes.axvline(chart.mark, color=LIGHT["muted"], linewidth=0.8, linestyle=":")
    axes.grid(color=LIGHT["grid"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=LIGHT["muted"], length=3)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(LIGHT["muted"])


def _curve(axes: Axes, one: Curve, unit: str) -> None:
    factor = 100 if unit else 1
    colour = LIGHT[one.colour]
    heights = [float("nan") if value is None else factor * value for value in one.y]
    if one.low:
        low, high = ([factor * (value or 0) for value in edge] for edge in (one.low, one.high))
        axes.fill_between(one.x, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.plot(
        one.x,
        heights,
        color=colour,
        linewidth=1.8,
        linestyle=DASHES[one.dash],
        marker=MARKERS.get(one.marker, ""),
        markersize=4.5,
        markevery=max(1, len(one.x) // 10),
        label=literal(one.name) if one.listed else None,
    )


def _legend(figure: Figure, grid: list[Axes]) -> None:
    found = {}
    for axes in grid:
        for handle, label in zip(axes.lines, (line.get_label() for line in axes.lines), strict=True):
            if str(label).startswith("_child"):  # matplotlib's own name for a line without one
                continue
            found.setdefault(str(label), handle)
    columns = 2 if len(found) > 4 or any(len(label) > 30 for label in found) else max(len(found), 1)
    figure.legend(
        list(found.values()),
        list(found),
        loc="outside lower left",
        ncols=columns,
        frameon=False,
        fontsize=9,
        handlelength=3.2,
    )


def literal(text: str) -> str:
    """A name without what matplotlib reads in one: $ starts a formula, a first _ hides a legend entry."""
    cut = " ".join(text.split())
    cut = cut if len(cut) <= 70 else f"{cut[:69]}…"
    safe = cut.replace("$", r"\$")
    return f" {safe}" if safe.startswith("_") else safe
