"""One offline page from plain parts: sections of tables, charts, images, names and commands.

Names of classes and files come from strangers. Three things keep them inert: jinja escapes all text, charts are
written by an XML library, and a content policy lets no script run but the one whose hash it names, and loads nothing
from anywhere.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from taskgraft.errors import InputError
from taskgraft.report import charts, drawing, theme
from taskgraft.report.charts import Chart
from taskgraft.results.files import write_asked

SQUARE, SMALL = 640, 380  # units wide, as in drawing
MARK = '<p class="eyebrow">taskgraft'  # what every page of ours has


class Text(NamedTuple):
    """A paragraph; `tone` is "", "note" or "warning"."""

    text: str
    tone: str = ""
    kind: str = "text"


class Table(NamedTuple):
    """Rows of cells; the first cell heads its row. `words` are the columns that hold words, not numbers."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: tuple[int, ...] = (0,)
    strong: int | None = None  # the row in bold
    code: tuple[int, ...] = ()  # columns that are set as code
    kind: str = "table"


class Plot(NamedTuple):
    """A chart, and what it shows as tables; `size` is "medium", "square" or "small"."""

    chart: Chart
    tables: tuple[Table, ...]
    size: str = "medium"
    kind: str = "plot"


class Plots(NamedTuple):
    """Small plots side by side."""

    items: tuple[Plot, ...]
    kind: str = "plots"


class Fold(NamedTuple):
    """Something that is closed until it is asked for."""

    summary: str
    table: Table
    kind: str = "fold"


class Code(NamedTuple):
    """A command to copy, with what it does."""

    lead: str
    text: str
    kind: str = "code"


class Shot(NamedTuple):
    """An image as a data URI, what it shows in words, and a line below it."""

    source: str
    alt: str
    line: str


class Group(NamedTuple):
    """Images that have something in common: labeled names ("true", "BMW 3"), a line, the images."""

    names: tuple[tuple[str, str], ...]
    line: str
    shots: tuple[Shot, ...]


class Gallery(NamedTuple):
    """Groups of images under one title."""

    title: str
    caption: str
    groups: tuple[Group, ...]
    kind: str = "gallery"


class Link(NamedTuple):
    """A step of a chain: what it is, and lines about it."""

    title: str
    lines: tuple[str, ...]


class Chain(NamedTuple):
    """Steps that follow each other."""

    links: tuple[Link, ...]
    kind: str = "chain"


Block = Text | Table | Plot | Plots | Fold | Code | Gallery | Chain


class Card(NamedTuple):
    """An answer of the first screen: the question, the answer in a few words, sentences, a command or ""."""

    question: str
    answer: str
    lines: tuple[str, ...]
    command: str = ""
    tone: str = ""


class Mark(NamedTuple):
    """A share as text and as a place on a scale from 0 to 100, with its interval."""

    text: str
    at: float
    low: float
    high: float


class Bar(NamedTuple):
    """A task of the first screen, before and now; None where nothing was measured, or nothing was before."""

    name: str
    detail: str
    was: Mark | None
    now: Mark | None
    change: str


class Board(NamedTuple):
    """The tasks of the first screen under their question, and how to read them."""

    question: str
    rows: tuple[Bar, ...]
    note: str


class Section(NamedTuple):
    """A part of the page under its own heading; `dense` sets small tables side by side."""

    key: str
    title: str
    blocks: tuple[Block, ...]
    dense: bool = False


class Page(NamedTuple):
    """A whole page: heading, the line above it, the sentence below it, answers, sections, tasks before and now."""

    title: str
    eyebrow: str
    lead: str
    cards: tuple[Card, ...]
    sections: tuple[Section, ...]
    footer: str
    board: Board | None = None


def render(page: Page) -> str:
    """The page as one HTML file without any outside resource."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    loader = PackageLoader("taskgraft.report")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    script = theme.part("page.js")
    return environment.get_template("page.html.j2").render(
        page=page,
        policy=_policy(script),
        style=Markup(theme.sheet(theme.part("page.css"))),
        script=Markup(script),
        drawn=lambda plot: Markup(_drawn(plot)),
    )


def write_page(path: Path, page: str) -> None:
    """Write a page where the user asked for it; raises TaskgraftError where that cannot be, or something else is there."""
    if path.exists() and MARK not in path.read_text(encoding="utf-8", errors="replace"):
        raise InputError(f"{path} exists and is no page of taskgraft; choose another file for --html")
    write_asked(path, page)


def _policy(script: str) -> str:
    """A content policy that runs this script and no other, and fetches nothing."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _drawn(plot: Plot) -> str:
    """The chart as it stands on a wide screen and on paper, and as it stands on a phone."""
    chart = plot.chart
    label = f"{chart.kind}. {chart.title}. {chart.caption}"
    if plot.size == "small":
        return drawing.svg(chart, chart.key, SMALL, label, "any")
    broad = SQUARE if plot.size == "square" else drawing.BROAD
    slim = drawing.svg(chart, f"{chart.key}-slim", drawing.SLIM, label, "slim")
    return drawing.svg(chart, chart.key, broad, label, "broad") + slim


def chart_plot(chart: Chart, size: str = "medium") -> Plot:
    """A chart of curves as a plot, with its numbers as tables."""
    tables = []
    for panel in chart.panels:
        head, rows = charts.table_rows(panel)
        tables.append(Table(f"{chart.title}{': ' if panel.title else ''}{panel.title}", head, rows))
    return Plot(chart, tuple(tables), size)


def pairs(caption: str, head: tuple[str, str], rows: Sequence[tuple[str, str]]) -> tuple[Table, ...]:
    """A table of names and values; none when there are no rows."""
    return (Table(caption, head, tuple(rows), (0, 1)),) if rows else ()
