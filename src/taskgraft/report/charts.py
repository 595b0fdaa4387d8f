"""Charts: what they show as plain data, and one matplotlib drawing of it, as SVG for a page or as PNG for a file.

Matplotlib's global state is neither used nor changed. In the SVG each color of the light theme becomes the CSS variable
of its name, so that the page's theme decides; texts stay texts, and points tell their values when hovered.
"""

from __future__ import annotations

import io
import re
import unicodedata
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from math import inf, isfinite, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from xml.etree import ElementTree

from taskgraft.report import formatting as fmt
from taskgraft.report.theme import LIGHT
from taskgraft.results.files import atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SERIES = ("blue", "vermillion", "green", "purple", "orange", "sky", "red", "grey")  # colors of curves, in order
DASHES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "D", "^", "X", "P", "*", "v")
WIDE, NARROW = 860, 360  # CSS pixels: on a screen, on a phone
PNG_WIDTH, PNG_DPI = 600, 153.6  # 1280 pixels wide
MAX_POINTS = 300  # of a curve: more weigh more and look the same
MAX_TABLE_ROWS = 60
MAX_TOOLTIPS = 40  # of a curve
CHARACTER_WIDTH = 0.6  # of the font size, roughly


class Axis(NamedTuple):
    """An axis from `low` to `high`, reversed where `low` is larger; `names` replace numbers at given positions."""

    title: str = ""
    low: float | None = None
    high: float | None = None
    log: bool = False
    integer: bool = False
    names: tuple[tuple[float, str], ...] | None = None


class Style(NamedTuple):
    """What tells a curve from others: color, dash ("" = no line) and marker ("" = none)."""

    color: str
    dash: str
    marker: str


class Curve(NamedTuple):
    """Points, joined by a line unless `style.dash` is "". y has None for gaps.

    `low` and `high` bound a band; `x_bars` and `y_bars` are the ends of error bars; `sizes` are marker diameters;
    `tooltips` are texts of points. Any of them may be empty.
    """

    name: str
    style: Style
    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()
    in_legend: bool = True
    hollow: bool = False
    stepped: bool = False
    size: float = 6
    sizes: Sequence[float] = ()
    x_bars: Sequence[tuple[float, float]] = ()
    y_bars: Sequence[tuple[float, float]] = ()
    tooltips: Sequence[str] = ()


class Box(NamedTuple):
    """A rectangle with its corner at (x, y): a bar or a cell; `name` is its legend entry."""

    x: float
    y: float
    width: float
    height: float
    color: str
    opacity: float = 1.0
    name: str = ""
    text: str = ""
    tooltip: str = ""


class Panel(NamedTuple):
    """Curves and boxes on one pair of axes; with `percent` the curves are fractions, drawn in percent."""

    title: str
    y: Axis
    curves: tuple[Curve, ...] = ()
    boxes: tuple[Box, ...] = ()
    percent: bool = False
    height: float = 300


class Chart(NamedTuple):
    """Panels stacked on one x axis; `mark` is a dotted vertical line; `kind` describes it to screen readers."""

    key: str
    title: str
    caption: str
    panels: tuple[Panel, ...]
    x: Axis
    mark: float | None = None
    mark_text: str = ""
    kind: str = "Line chart"


Points = Sequence[tuple[float, float]]


def choose_styles(methods: Sequence[str]) -> tuple[Style, ...]:
    """Choose a style per configuration: a color per method, a dash per variant of it, all markers different.

    Where a method has more variants than there are dashes, every configuration gets the next color instead.
    """
    families = [_family(method) for method in methods]
    if max((families.count(name) for name in families), default=0) > len(DASHES):
        families = [str(i) for i in range(len(methods))]
    names = list(dict.fromkeys(families))
    styles = []
    for i, name in enumerate(families):
        turn, color = divmod(names.index(name), len(SERIES))
        variant = (families[:i].count(name) + turn) % len(DASHES)
        styles.append(Style(SERIES[color], DASHES[variant], MARKERS[i % len(MARKERS)]))
    return tuple(styles)


def _family(method: str) -> str:
    """The method's names without their settings: b(strength=3) + a -> a + b."""
    return " + ".join(sorted(part.split("(")[0].strip() for part in method.split(" + ")))


def build_mean_curve(name: str, style: Style, runs: Iterable[Points]) -> Curve | None:
    """Build the curve of the mean over runs, with a band from the lowest to the highest run.

    Args:
        name: Its legend entry.
        style: Its style.
        runs: (step, value) points of each run; NaN and infinities are dropped.

    Returns:
        The curve at the steps that all runs have; None where there are none.
    """
    tables = [{step: value for step, value in points if isfinite(value)} for points in runs]
    tables = [table for table in tables if table]
    steps = thin(sorted(set.intersection(*map(set, tables))), MAX_POINTS) if tables else []
    if not steps:
        return None
    values = [[table[step] for table in tables] for step in steps]
    low, high = (tuple(map(min, values)), tuple(map(max, values))) if len(tables) > 1 else ((), ())
    return Curve(name, style, tuple(steps), tuple(sum(row) / len(row) for row in values), low, high)


def thin(steps: Sequence[float], limit: int) -> list[float]:
    """Keep about `limit` of ascending steps, evenly spaced, always the first and the last."""
    stride = max(1, -(-len(steps) // limit))
    return sorted({*steps[::stride], *steps[-1:]})


def step_axis(start: float, end: float) -> Axis:
    """The x axis of training steps, slightly wider than the data so that the outer markers are whole."""
    margin = 0.015 * ((end - start) or 1)
    return Axis("step", start - margin, end + margin, integer=True)


def tabulate(panel: Panel) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Return the header and rows of a panel's values: a step per row, a curve per column."""
    head = ("Step", *(f"{curve.name} (%)" if panel.percent else curve.name for curve in panel.curves))
    columns = [dict(zip(curve.x, curve.y, strict=True)) for curve in panel.curves]
    steps = thin(sorted(set().union(*columns)), MAX_TABLE_ROWS)
    return head, tuple(
        (f"{step:g}", *(_value_text(column.get(step), panel.percent) for column in columns)) for step in steps
    )


def _value_text(value: float | None, percent: bool) -> str:
    if value is None:
        return fmt.MISSING
    return fmt.percent(value) if percent else f"{value:.4g}"


# ---- drawing ---------------------------------------------------------------------------------------------------

SETTINGS = {
    "figure.facecolor": "none", "axes.facecolor": "none", "svg.fonttype": "none",
    "text.parse_math": False, "text.color": LIGHT["ink"], "axes.labelcolor": LIGHT["ink"],
    "axes.titlecolor": LIGHT["ink"], "axes.titlelocation": "left", "axes.titleweight": "bold",
    "axes.titlesize": "medium", "axes.edgecolor": LIGHT["muted"], "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "axes.axisbelow": True, "axes.formatter.useoffset": False, "axes.formatter.limits": (-5, 7),
    "grid.color": LIGHT["grid"], "lines.linewidth": 1.9, "lines.dashed_pattern": (5, 2),
    "lines.dotted_pattern": (1, 1.5), "lines.dashdot_pattern": (5, 1.5, 1, 1.5), "errorbar.capsize": 2.5,
    "xtick.color": LIGHT["muted"], "ytick.color": LIGHT["muted"], "xtick.labelcolor": LIGHT["ink"],
    "ytick.labelcolor": LIGHT["ink"], "legend.frameon": False, "legend.borderpad": 0.2, "legend.handlelength": 2.6,
}  # fmt: skip


class Tooltip(NamedTuple):
    """A text for the rectangle between two corners in data coordinates, or for a point (two equal corners)."""

    axes: Axes
    first: tuple[float, float]
    last: tuple[float, float]
    text: str


def render_svg(chart: Chart, key: str, width: float, label: str, css_class: str) -> str:
    """Draw a chart as an SVG element.

    Args:
        chart: What to draw.
        key: What all ids in the element are derived from, unique on its page.
        width: Its width in CSS pixels; fonts and legends are laid out for it.
        label: Its accessible name.
        css_class: Its class; "slim" gets no tooltips, since phones cannot hover.

    Returns:
        The element, colored by the theme's CSS variables.
    """
    file = io.StringIO()
    with _settings(width, key):
        figure, tooltips = _draw(chart, width)
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
        root = _clean_svg(ElementTree.fromstring(file.getvalue()))
        box = root.attrib["viewBox"]
        root.attrib = {"class": css_class, "viewBox": box, "role": "img", "aria-label": clean_text(label, 1000)}
        if css_class != "slim":
            root.extend(_tooltip_element(tooltip, float(box.split()[-1])) for tooltip in tooltips)
    return ElementTree.tostring(root, encoding="unicode")


def write_png(chart: Chart, path: Path) -> None:
    """Write a chart with its title as a PNG file, 1280 pixels wide; equal charts give equal bytes."""
    with _settings(PNG_WIDTH), atomic(path) as temporary:
        figure, _ = _draw(chart, PNG_WIDTH, with_title=True)
        figure.savefig(temporary, format="png", dpi=PNG_DPI, facecolor=LIGHT["paper"], metadata={"Software": None})


def clean_text(text: str, limit: int = 40) -> str:
    """Put a name on one line without control characters, shortened in the middle to `limit` columns.

    East Asian wide characters count as two columns. The ends stay, since they tell pairs and models apart.
    """
    printable = "".join(char for char in text if unicodedata.category(char)[0] != "C" or char.isspace())
    cells = [
        cell
        for char in " ".join(printable.split())
        for cell in ((char, "") if unicodedata.east_asian_width(char) in "WF" else (char,))
    ]
    if len(cells) > limit:
        cells = [*cells[: limit * 2 // 3], "…", *cells[len(cells) - limit // 3 + 1 :]]
    return "".join(cells)


@contextmanager
def _settings(width: float, key: str = "") -> Iterator[None]:
    from matplotlib import style

    settings = SETTINGS | {"font.size": _font_size(width), "svg.hashsalt": key}
    with style.context(settings, after_reset=True), warnings.catch_warnings():
        # scripts that matplotlib's font lacks: a page's reader has a font for them, a PNG shows boxes
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        yield


def _font_size(width: float) -> float:
    return 13.0 if width > PNG_WIDTH else 11.5


def _text_width(names: Sequence[str], width: float) -> float:
    """Pixels that the longest of the names needs."""
    columns = [len(name) + sum(unicodedata.east_asian_width(char) in "WF" for char in name) for name in names]
    return max(columns, default=0) * _font_size(width) * CHARACTER_WIDTH


def _max_columns(width: float) -> tuple[int, int]:
    """Columns of a name beside the y axis and of one below the x axis."""
    return (30, 22) if width > PNG_WIDTH / 1.5 else (18, 14)


def _draw(chart: Chart, width: float, with_title: bool = False) -> tuple[Figure, list[Tooltip]]:
    from matplotlib.figure import Figure

    entries = [curve.name for panel in chart.panels for curve in panel.curves if curve.in_legend]
    entries = list(dict.fromkeys([*entries, *(box.name for panel in chart.panels for box in panel.boxes if box.name)]))
    fitting = int(width / (_text_width([clean_text(name) for name in entries], width) + 66))
    columns = max(1, min(fitting, len(entries)))
    label_height, label_every = _rotated_labels(chart, width)
    character, margin = _font_size(width) * CHARACTER_WIDTH, _left_margin(chart, width)
    heights = [panel.height * (0.8 if width == NARROW and not panel.y.names else 1) for panel in chart.panels]
    height = sum(heights) + label_height + 1.6 * _font_size(width) * -(-len(entries) // columns) + 30 * with_title
    figure = Figure(figsize=(width / 72, height / 72), dpi=72, layout="constrained")
    separate_scales = chart.x.high is None  # a panel each
    grid = figure.subplots(len(chart.panels), 1, sharex=not separate_scales, squeeze=False, height_ratios=heights)[:, 0]
    tooltips, legend = list[Tooltip](), {}
    for i, (axes, panel) in enumerate(zip(grid, chart.panels, strict=True)):
        tooltips += _draw_panel(axes, panel, chart.x, width)
        x = chart.x if separate_scales or i == len(grid) - 1 else chart.x._replace(title="")
        _format_axis(axes, "x", x, _max_columns(width)[1], label_height > 0, label_every)
        # a title longer than its axis would leave the axis no room
        axes.set_xlabel(clean_text(axes.get_xlabel(), int((width - margin - 50) / character)))
        axes.set_ylabel(clean_text(axes.get_ylabel(), int(0.8 * heights[i] / character)))
        title = clean_text(panel.title, int((width - margin - 50) / character / 1.15))
        axes.set_title(title, pad=24 if chart.mark_text and i == 0 else 6)
        if chart.mark is not None:
            axes.axvline(chart.mark, color=LIGHT["muted"], linewidth=1.1, linestyle=":")
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            legend.setdefault(name, handle)
    if chart.mark is not None:
        late = chart.mark > ((chart.x.low or 0) + (chart.x.high or 1)) / 2
        grid[0].annotate(
            clean_text(chart.mark_text), (chart.mark, 1), (0, 3), grid[0].get_xaxis_transform(), "offset points",
            ha="right" if late else "left", size="small", color=LIGHT["muted"], in_layout=False,
        )  # fmt: skip
    if with_title:
        figure.suptitle(clean_text(chart.title, 70), x=0.01, ha="left", size="large", weight="bold")
    if legend:
        figure.legend(list(legend.values()), list(legend), loc="outside lower left", ncols=columns)
    return figure, tooltips


def _rotated_labels(chart: Chart, width: float) -> tuple[float, int]:
    """Height of x labels that have to be rotated (0 = they need not), and that only each n-th one fits."""
    names = [clean_text(name, _max_columns(width)[1]) for _, name in chart.x.names or ()]
    if not names:
        return 0, 1
    room, longest = (width - _left_margin(chart, width) - 40) / len(names), _text_width(names, width)
    return (0.75 * longest if longest + 6 > room else 0), max(1, round(1.4 * _font_size(width) / room))


def _left_margin(chart: Chart, width: float) -> float:
    limit = _max_columns(width)[0]
    names = [clean_text(name, limit) for panel in chart.panels for _, name in panel.y.names or ()]
    return _text_width(names, width)


def _draw_panel(axes: Axes, panel: Panel, x: Axis, width: float) -> list[Tooltip]:
    from matplotlib.patches import Rectangle

    tooltips = []
    for box in panel.boxes:
        label = _legend_entry(box.name) if box.name else None
        corner = box.x, box.y
        color = LIGHT[box.color]
        axes.add_patch(Rectangle(
            corner, box.width, box.height, color=color, alpha=box.opacity, lw=0, label=label, clip_on=False
        ))  # fmt: skip
        if box.text:
            axes.text(box.x + box.width / 2, box.y + box.height / 2, box.text, ha="center", va="center", size="small")
        if box.tooltip:
            tooltips.append(Tooltip(axes, corner, (box.x + box.width, box.y + box.height), box.tooltip))
    axes.autoscale_view()
    for curve in panel.curves:
        tooltips += _draw_curve(axes, curve, panel.percent, x)
    _format_axis(axes, "y", panel.y, _max_columns(width)[0])
    return tooltips


def _draw_curve(axes: Axes, curve: Curve, percent: bool, x: Axis) -> list[Tooltip]:
    scale, color = (100 if percent else 1), LIGHT[curve.style.color]
    fill = "none" if curve.hollow else color
    heights = [nan if value is None else scale * value for value in curve.y]
    if curve.low:
        low, high = ([scale * (value or 0) for value in edge] for edge in (curve.low, curve.high))
        axes.fill_between(curve.x, low, high, color=color, alpha=0.16, linewidth=0)
    for name, ends, values in (("xerr", curve.x_bars, curve.x), ("yerr", curve.y_bars, heights)):
        if ends:
            reach: Any = [[abs(v - end[side]) for v, end in zip(values, ends, strict=True)] for side in (0, 1)]
            axes.errorbar(curve.x, heights, **{name: reach}, fmt="none", color=color, elinewidth=1.3)
    # a dozen markers tell lines apart; one on every point would hide them
    every: Any = [] if curve.sizes else max(1, len(curve.x) // 12) if curve.style.dash and not curve.stepped else 1
    axes.plot(
        curve.x, heights, color=color, linestyle=curve.style.dash or "none", marker=curve.style.marker,
        markersize=curve.size, markerfacecolor=fill, markeredgewidth=1.6 if curve.hollow else 0.6, markevery=every,
        drawstyle="steps-post" if curve.stepped else "default",
        label=_legend_entry(curve.name) if curve.in_legend else None,
    )  # fmt: skip
    if curve.sizes:
        areas = [size**2 for size in curve.sizes]
        axes.scatter(
            curve.x, heights, areas, marker=curve.style.marker, edgecolors=color, facecolors=fill, lw=1.6, zorder=3
        )
    unit = " %" if percent else ""
    texts = curve.tooltips or [
        f"{curve.name}, step {step:g}: {_value_text(value, percent)}{unit}"
        for step, value in zip(curve.x, curve.y, strict=True)
    ]
    low, high = (-inf if x.low is None else x.low), (inf if x.high is None else x.high)
    visible = [i for i, at in enumerate(curve.x) if isfinite(heights[i]) and low <= at <= high]
    points = [(curve.x[i], heights[i], texts[i]) for i in map(int, thin(visible, MAX_TOOLTIPS))]
    return [Tooltip(axes, (at, value), (at, value), text) for at, value, text in points]


def _legend_entry(name: str) -> str:
    """A name for matplotlib's legend, which leaves out those that begin with an underscore."""
    return f" {clean_text(name)}" if name.startswith("_") else clean_text(name)


def _format_axis(axes: Axes, name: str, axis: Axis, limit: int, rotate: bool = False, every: int = 1) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    target = axes.xaxis if name == "x" else axes.yaxis
    if axis.log:
        axes.set(**{f"{name}scale": "log"})
        low, high = target.get_view_interval()
        target.set_major_locator(LogLocator(subs=(1,) if high > 300 * low else (1, 2, 5)))
        target.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        target.set_minor_formatter(NullFormatter())
    elif axis.integer:
        target.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))
    axes.set(**{f"{name}lim": (axis.low, axis.high), f"{name}label": axis.title})
    if axis.names is not None:
        names = axis.names[::every]
        target.set_ticks([at for at, _ in names], [clean_text(text, limit) for _, text in names])
        target.grid(visible=False)
        target.set_tick_params(length=0)
        for text in target.get_ticklabels() if rotate else ():
            text.set(rotation=45, ha="right", va="center", rotation_mode="anchor")


# ---- from matplotlib's SVG to an element of a page ------------------------------------------------------------

_NAMESPACE = "{http://www.w3.org/2000/svg}"
_COLOR_NAMES = {color: name for name, color in reversed(LIGHT.items())}  # of two equal colors the first


def _clean_svg(root: ElementTree.Element) -> ElementTree.Element:
    """Drop namespaces, metadata, style sheets and unused ids, and turn colors into the theme's variables."""
    for parent in list(root.iter()):
        for child in [child for child in parent if child.tag in (f"{_NAMESPACE}metadata", f"{_NAMESPACE}style")]:
            parent.remove(child)
    values = " ".join(value for element in root.iter() for name, value in element.attrib.items() if name != "id")
    references = set(re.findall(r"#([a-zA-Z]\w+)", values))
    for element in root.iter():
        element.tag, element.tail = element.tag.removeprefix(_NAMESPACE), None
        element.text = element.text if element.tag == "text" else None
        element.attrib = {
            name.split("}")[-1]: _clean_attribute(name, value)
            for name, value in element.attrib.items()
            if (value in references if name == "id" else not value.startswith("rotate(-0 "))
        }
    return root


def _clean_attribute(name: str, value: str) -> str:
    if name == "style":
        value = re.sub(r"(font-family|stroke-(linecap|linejoin|miterlimit)):[^;]*;?|(?<=[:;])\s+|;\s*$", "", value)
        return re.sub(r"#[0-9a-f]{6}", lambda match: f"var(--{_COLOR_NAMES[match[0]]})", value)
    if name == "id" or "#" in value:
        return value
    return re.sub(r"-?\d+\.\d+", lambda match: f"{float(match[0]):.1f}".removesuffix(".0"), " ".join(value.split()))


def _tooltip_element(tooltip: Tooltip, height: float) -> ElementTree.Element:
    """An invisible shape with a title, which browsers show on hovering."""
    corners = tooltip.axes.transData.transform([tooltip.first, tooltip.last])
    (left, right), (low, top) = (sorted(side) for side in corners.T.tolist())
    if tooltip.first == tooltip.last:
        tag, sides = "circle", {"cx": left, "cy": height - low, "r": 7.0}
    else:
        tag, sides = "rect", {"x": left, "y": height - top, "width": right - left, "height": top - low}
    element = ElementTree.Element(tag, {"class": "tip"} | {name: f"{value:.1f}" for name, value in sides.items()})
    ElementTree.SubElement(element, "title").text = clean_text(tooltip.text, 120)
    return element
