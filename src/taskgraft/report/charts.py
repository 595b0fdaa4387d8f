"""What is drawn, before anything draws it: curves, panels, charts, and the styles that tell curves apart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isfinite
from typing import NamedTuple

from taskgraft.report import wording

SERIES = ("blue", "vermillion", "green", "purple", "orange", "sky", "red", "grey")
DASHES = ("solid", "dash", "dot", "dashdot")
MARKERS = ("circle", "square", "diamond", "triangle-up", "x", "cross", "star", "triangle-down")

POINTS = 300  # a curve of more points looks the same and weighs more
ROWS = 60  # of a table beside a plot


class Curve(NamedTuple):
    """A line: x ascending, y with None for gaps; `low` and `high` bound a band and may be empty."""

    name: str
    colour: str
    dash: str
    marker: str  # "" = none
    x: tuple[float, ...]
    y: tuple[float | None, ...]
    low: tuple[float | None, ...] = ()
    high: tuple[float | None, ...] = ()
    listed: bool = True  # in the legend


class Panel(NamedTuple):
    """Curves on one pair of axes; `unit` is "%" for shares, "" for anything else."""

    title: str
    axis: str
    curves: tuple[Curve, ...]
    unit: str = "%"
    log: bool = False


class Chart(NamedTuple):
    """Panels above each other on one x axis from `start` to `end`; `mark` is a dotted line at a step."""

    key: str
    title: str
    caption: str
    panels: tuple[Panel, ...]
    start: float
    end: float
    mark: float | None = None
    mark_text: str = ""


class Style(NamedTuple):
    """How a curve is told from others: colour, dash and marker."""

    colour: str
    dash: str
    marker: str


def styles(methods: Sequence[str]) -> tuple[Style, ...]:
    """A style for each arrangement: one colour a method, one dash a variant of it, markers all different.

    Where a method has more variants than there are dashes, colours go round instead.
    """
    families = [family(method) for method in methods]
    names = list(dict.fromkeys(families))
    if max((families.count(name) for name in names), default=0) > len(DASHES):
        names, families = [str(i) for i in range(len(methods))], [str(i) for i in range(len(methods))]
    found = []
    for i, name in enumerate(families):
        turn, colour = divmod(names.index(name), len(SERIES))
        variant = (families[:i].count(name) + turn) % len(DASHES)
        found.append(Style(SERIES[colour], DASHES[variant], MARKERS[i % len(MARKERS)]))
    return tuple(found)


def family(method: str) -> str:
    """The method's names without their values: ewc(strength=3) + wise -> ewc + wise."""
    return " + ".join(sorted(part.split("(")[0].strip() for part in method.split(" + ")))


Points = Sequence[tuple[float, float]]


def curve(name: str, style: Style, runs: Iterable[Points]) -> Curve | None:
    """The mean over runs at every step that each of them has, with a band from lowest to highest.

    None when there is no such step.
    """
    tables = [{step: value for step, value in points if isfinite(value)} for points in runs]
    tables = [table for table in tables if table]
    if not tables:
        return None
    steps = sorted(set.intersection(*(set(table) for table in tables)))
    steps = thin(steps, POINTS)
    if not steps:
        return None
    values = [[table[step] for table in tables] for step in steps]
    band = len(tables) > 1
    return Curve(
        name,
        style.colour,
        style.dash,
        style.marker,
        tuple(steps),
        tuple(sum(row) / len(row) for row in values),
        tuple(min(row) for row in values) if band else (),
        tuple(max(row) for row in values) if band else (),
    )


def thin(steps: Sequence[float], most: int) -> list[float]:
    """At most about `most` of the steps, evenly, always with the first and the last."""
    stride = -(-len(steps) // most)
    kept = list(steps[::stride])
    return kept if not steps or kept[-1] == steps[-1] else [*kept, steps[-1]]


def level(name: str, style: Style, value: float, start: float, end: float) -> Curve:
    """A dashed line at one height."""
    return Curve(name, style.colour, "dash", "", (start, end), (value, value))


def table_rows(panel: Panel) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Head and rows of a panel's numbers: a step a row, a curve a column."""
    head = ("Step", *(f"{one.name} (%)" if panel.unit else one.name for one in panel.curves))
    tables = [dict(zip(one.x, one.y, strict=True)) for one in panel.curves]
    steps = thin(sorted(set().union(*tables)), ROWS)
    rows = [(f"{step:g}", *(_number(table.get(step), panel.unit) for table in tables)) for step in steps]
    return head, tuple(rows)


def _number(value: float | None, unit: str) -> str:
    if value is None:
        return wording.NOTHING
    return wording.percent(value) if unit else f"{value:.4g}"


def end_of(panels: Iterable[Panel], least: float = 1) -> float:
    """The last step of any curve."""
    return max((one.x[-1] for panel in panels for one in panel.curves), default=least)
