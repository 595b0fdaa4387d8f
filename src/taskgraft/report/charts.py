"""What is drawn, before anything draws it: curves, boxes and words on axes, and the styles that tell curves apart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isfinite
from typing import NamedTuple

from taskgraft.report import formatting

SERIES = ("blue", "vermillion", "green", "purple", "orange", "sky", "red", "grey")
DASHES = ("-", "--", ":", "-.")  # as matplotlib calls them
MARKERS = ("o", "s", "D", "^", "X", "P", "*", "v")

POINTS = 300  # a curve of more points looks the same and weighs more
ROWS = 60  # of a table beside a chart


class Axis(NamedTuple):
    """An axis; from `low` to `high`, from top to bottom where `low` is the larger. `names` stand at their places."""

    title: str = ""
    low: float | None = None
    high: float | None = None
    log: bool = False
    whole: bool = False  # only whole numbers are marked
    names: tuple[tuple[float, str], ...] | None = None  # instead of numbers


class Curve(NamedTuple):
    """Points, on a line unless `dash` is "", with markers unless `marker` is "".

    y has None for gaps. `low` and `high` bound a band; `across` and `along` are the ends of bars in the directions of
    x and y; all may be empty. `sizes` are diameters of markers, `tips` what is said of each point.
    """

    name: str
    color: str
    dash: str
    marker: str
    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()
    listed: bool = True  # in the legend
    hollow: bool = False
    stepped: bool = False  # a value holds until the next one
    size: float = 6
    sizes: Sequence[float] = ()
    across: Sequence[tuple[float, float]] = ()
    along: Sequence[tuple[float, float]] = ()
    tips: Sequence[str] = ()


class Box(NamedTuple):
    """A rectangle from (x, y): a bar or a cell; `strength` is its opacity, `name` its entry in the legend."""

    x: float
    y: float
    width: float
    height: float
    color: str
    strength: float = 1.0
    name: str = ""
    text: str = ""
    tip: str = ""


class Panel(NamedTuple):
    """What stands on one pair of axes; with the unit "%" its curves are shares."""

    title: str
    y: Axis
    curves: tuple[Curve, ...] = ()
    boxes: tuple[Box, ...] = ()
    unit: str = ""
    height: float = 300


class Chart(NamedTuple):
    """Panels above each other on one x axis; `mark` is a dotted line at a step. `kind` says what it looks like."""

    key: str
    title: str
    caption: str
    panels: tuple[Panel, ...]
    x: Axis
    mark: float | None = None
    mark_text: str = ""
    kind: str = "Line chart"


class Style(NamedTuple):
    """How a curve is told from others: colour, dash and marker."""

    color: str
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
        turn, color = divmod(names.index(name), len(SERIES))
        variant = (families[:i].count(name) + turn) % len(DASHES)
        found.append(Style(SERIES[color], DASHES[variant], MARKERS[i % len(MARKERS)]))
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
    steps = thin(sorted(set.intersection(*(set(table) for table in tables))), POINTS)
    if not steps:
        return None
    values = [[table[step] for table in tables] for step in steps]
    means = tuple(sum(row) / len(row) for row in values)
    low, high = (tuple(map(min, values)), tuple(map(max, values))) if len(tables) > 1 else ((), ())
    return Curve(name, *style, tuple(steps), means, low, high)


def thin(steps: Sequence[float], most: int) -> list[float]:
    """At most about `most` of the steps, evenly, always with the first and the last."""
    stride = max(1, -(-len(steps) // most))
    kept = list(steps[::stride])
    return kept if not steps or kept[-1] == steps[-1] else [*kept, steps[-1]]


def over_steps(start: float, end: float) -> Axis:
    """The axis of steps, a little wider than they are, so that the first and the last marker are whole."""
    room = 0.015 * ((end - start) or 1)
    return Axis("step", start - room, end + room, whole=True)


def table_rows(panel: Panel) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Head and rows of a panel's numbers: a step a row, a curve a column."""
    head = ("Step", *(f"{one.name} (%)" if panel.unit else one.name for one in panel.curves))
    tables = [dict(zip(one.x, one.y, strict=True)) for one in panel.curves]
    steps = thin(sorted(set().union(*tables)), ROWS)
    return head, tuple((f"{step:g}", *(number(table.get(step), panel.unit) for table in tables)) for step in steps)


def number(value: float | None, unit: str) -> str:
    """A value of a panel as text, without its unit."""
    if value is None:
        return formatting.NOTHING
    return formatting.percent(value) if unit else f"{value:.4g}"
