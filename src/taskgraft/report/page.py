"""Render one offline HTML page from a template, and the data that templates take: tables and figures.

Names of classes and files are untrusted. Three things keep them inert: jinja escapes all text, charts are written by
an XML library, and the content security policy allows no script but ours (by its hash) and no request to anywhere.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from taskgraft.errors import InputError
from taskgraft.report import charts, theme
from taskgraft.report import formatting as fmt
from taskgraft.report.charts import Chart
from taskgraft.results.files import write_output

if TYPE_CHECKING:
    from jinja2 import Environment

SIGNATURE = '<p class="eyebrow">taskgraft'  # every page of ours contains it
WIDTHS = {"medium": charts.WIDE, "square": 640, "small": 380}  # of a figure, in CSS pixels
MAX_ROWS = 200  # of a table


class Table(NamedTuple):
    """A table; the first cell of a row is its header.

    `text_columns` hold words and align left, `code_columns` are set in a monospaced font, `bold` is the row to stress.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: Sequence[int] = (0,)
    code_columns: Sequence[int] = ()
    bold: int | None = None


class Figure(NamedTuple):
    """A chart with the tables that hold its numbers; `size` is "medium", "square" or "small"."""

    chart: Chart
    tables: Sequence[Table] = ()
    size: str = "medium"


def build_pairs_table(caption: str, head: tuple[str, str], rows: Iterable[tuple[str, str]]) -> Table:
    """Build a table of names and values."""
    return Table(caption, head, list(rows), (0, 1))


def build_long_table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]], total: int = 0) -> Table:
    """Build a table of text of at most MAX_ROWS rows, whose caption says how many of `total` (or all) are shown."""
    total, rows = max(total, len(rows)), rows[:MAX_ROWS]
    if len(rows) < total:
        caption += f" (first {len(rows)} of {total:,})"
    return Table(caption, head, rows, range(len(head)))


def build_line_figure(chart: Chart | None, size: str = "medium") -> Figure | None:
    """Build the figure of a chart of curves, with one table of its values per panel; None without a chart."""
    if chart is None:
        return None
    tables = [
        Table(f"{chart.title}{': ' if panel.title else ''}{panel.title}", *charts.tabulate(panel))
        for panel in chart.panels
    ]
    return Figure(chart, tables, size)


def render(template: str, **context: Any) -> str:
    """Render a template to one HTML file that needs nothing else.

    Args:
        template: File name below templates/; it extends page.html.j2 and fills its blocks.
        context: Its variables.

    Returns:
        The page. Equal contexts give equal pages.
    """
    from markupsafe import Markup

    script = theme.read_asset("page.js")
    sheet = theme.build_style_sheet(theme.read_asset("page.css"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
    page = _environment().get_template(template)
    return page.render(context, toc=[], policy=policy, style=Markup(sheet), script=Markup(script))


def write_page(path: Path, page: str) -> None:
    """Write a page to a path that the user chose.

    Raises:
        InputError: If the file exists and is not one of our pages, or cannot be written.
    """
    if path.exists() and SIGNATURE not in path.read_text(encoding="utf-8", errors="replace"):
        raise InputError(f"{path} exists and is not a taskgraft page; choose another file for --html")
    write_output(path, page)


@functools.cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("taskgraft.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, extensions=["jinja2.ext.do"],
    )  # fmt: skip
    filters = (fmt.percent, fmt.bounds, fmt.duration, fmt.to_sentence)
    environment.filters |= {function.__name__: function for function in filters}
    environment.globals |= {"n": fmt.pluralize, "draw": _draw}
    return environment


def _draw(figure: Figure) -> str:
    """The chart as SVG: once for wide screens and paper, once for phones; small ones serve both."""
    from markupsafe import Markup

    chart = figure.chart
    label = f"{chart.kind}. {chart.title}. {chart.caption}"
    css_class = "any" if figure.size == "small" else "broad"
    drawing = charts.render_svg(chart, chart.key, WIDTHS[figure.size], label, css_class)
    if figure.size != "small":
        drawing += charts.render_svg(chart, f"{chart.key}-slim", charts.NARROW, label, "slim")
    return Markup(drawing)
