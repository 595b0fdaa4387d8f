"""Charts drawn by matplotlib, without touching its global state: as SVG for a page, as PNG for a file.

Both are one drawing. In the SVG each colour of light paper becomes the variable of that name, so that a page's theme
decides; texts stay texts, and what can be pointed at says its values.
"""

from __future__ import annotations

import io
import re
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as Xml

from taskgraft.report.charts import Axis, Chart, Curve, Panel, number, thin
from taskgraft.report.theme import LIGHT
from taskgraft.results.files import atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BROAD, SLIM = 860, 360  # units wide: for a screen, for a phone; a unit is about a pixel
FILE, DOTS = 600, 153.6  # the same of a PNG file, and its dots an inch: 1280 pixels wide
LETTER = 0.6  # of its height is how wide a letter is, about
LONG = 40  # characters of a name
TIPS = 40  # points of a curve that say their value

Tips = list[tuple["Axes", tuple[float, float], tuple[float, float], str]]  # two corners, or one point twice; a text

LOOKS = {
    "figure.facecolor": "none", "axes.facecolor": "none", "svg.fonttype": "none", "svg.hashsalt": "taskgraft",
    "text.parse_math": False, "text.color": LIGHT["ink"], "axes.labelcolor": LIGHT["ink"],
    "axes.titlecolor": LIGHT["ink"], "axes.titlelocation": "left", "axes.titleweight": "bold",
    "axes.titlesize": "medium", "axes.edgecolor": LIGHT["muted"], "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "axes.axisbelow": True, "axes.formatter.useoffset": False, "axes.formatter.limits": (-5, 7),
    "grid.color": LIGHT["grid"], "lines.linewidth": 1.9, "lines.dashed_pattern": (5, 2),
    "lines.dotted_pattern": (1, 1.5), "lines.dashdot_pattern": (5, 1.5, 1, 1.5), "errorbar.capsize": 2.5,
    "xtick.color": LIGHT["muted"], "ytick.color": LIGHT["muted"], "xtick.labelcolor": LIGHT["ink"],
    "ytick.labelcolor": LIGHT["ink"], "legend.frameon": False, "legend.borderpad": 0.2, "legend.handlelength": 2.6,
}  # fmt: skip


def svg(chart: Chart, key: str, width: float, label: str, kind: str) -> str:
    """The chart as an SVG element for a page; its ids begin with `key`, its class is `kind`."""
    file = io.StringIO()
    with _looks(width):
        figure, tips = draw(chart, width)
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    root = _plain(Xml.fromstring(file.getvalue()), key)
    box = root.attrib["viewBox"]
    root.attrib = {"class": kind, "viewBox": box, "role": "img", "aria-label": literal(label, 1000)}
    root.extend(_pointed(*tip, height=float(box.split()[-1])) for tip in (tips if kind != "slim" else ()))
    return Xml.tostring(root, encoding="unicode")


def png(chart: Chart, path: Path) -> None:
    """Write the chart under its title as a PNG file."""
    with _looks(FILE), atomic(path) as aside:
        figure, _ = draw(chart, FILE, titled=True)
        figure.savefig(aside, format="png", dpi=DOTS, facecolor=LIGHT["paper"], metadata={"Software": None})


def literal(text: str, most: int = LONG) -> str:
    """A name on one line without control characters, cut in its middle, since ends tell pairs and models apart.

    A letter that is drawn as wide as two counts as two.
    """
    clean = "".join(one for one in text if unicodedata.category(one)[0] != "C" or one.isspace())
    cells = [
        cell
        for one in " ".join(clean.split())
        for cell in ((one, "") if unicodedata.east_asian_width(one) in "WF" else (one,))
    ]
    kept = cells if len(cells) <= most else [*cells[: most * 2 // 3], "…", *cells[len(cells) - most // 3 + 1 :]]
    return "".join(kept)


@contextmanager
def _looks(width: float) -> Iterator[None]:
    """The settings of a drawing, and nobody else's."""
    from matplotlib import style

    with style.context(LOOKS | {"font.size": _letters(width)}, after_reset=True), warnings.catch_warnings():
        # a name in a script that the built-in font lacks: a page's reader has it, a file shows boxes
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        yield


def _letters(width: float) -> float:
    """Height of letters, in units."""
    return 13.0 if width > FILE else 11.5


def _wide(names: list[str], width: float) -> float:
    """Units that the longest of the names needs."""
    letters = [len(name) + sum(unicodedata.east_asian_width(one) in "WF" for one in name) for name in names]
    return max(letters, default=0) * _letters(width) * LETTER


def _most(width: float) -> tuple[int, int]:
    """Letters of a name beside an axis, and of one below it."""
    return (30, 22) if width > FILE / 1.5 else (18, 14)


def draw(chart: Chart, width: float, titled: bool = False) -> tuple[Figure, Tips]:
    """A chart as a matplotlib figure, in the settings that hold, and what can be said of its points."""
    from matplotlib.figure import Figure

    listed = [one.name for panel in chart.panels for one in panel.curves if one.listed]
    listed = list(dict.fromkeys([*listed, *(box.name for panel in chart.panels for box in panel.boxes if box.name)]))
    columns = max(1, min(int(width / (_wide([literal(name) for name in listed], width) + 66)), len(listed)))
    turned, every = _turned(chart, width)
    letter, beside = _letters(width) * LETTER, _beside(chart, width)
    heights = [panel.height * (0.8 if width == SLIM and not panel.y.names else 1) for panel in chart.panels]
    height = sum(heights) + turned + 1.6 * _letters(width) * -(-len(listed) // columns) + 30 * titled
    figure = Figure(figsize=(width / 72, height / 72), dpi=72, layout="constrained")
    apart = chart.x.high is None  # each panel has a scale of its own
    grid = figure.subplots(len(chart.panels), 1, sharex=not apart, squeeze=False, height_ratios=heights)[:, 0]
    tips, legend = [], {}
    for i, (axes, panel) in enumerate(zip(grid, chart.panels, strict=True)):
        tips += _panel(axes, panel, chart.x, width)
        x = chart.x if apart or i == len(grid) - 1 else chart.x._replace(title="")
        _axis(axes, "x", x, _most(width)[1], turned, every)
        # a title longer than its axis would leave the axis no room
        axes.set_xlabel(literal(axes.get_xlabel(), int((width - beside - 50) / letter)))
        axes.set_ylabel(literal(axes.get_ylabel(), int(0.8 * heights[i] / letter)))
        axes.set_title(
            literal(panel.title, int((width - beside - 50) / letter / 1.15)),
            pad=24 if chart.mark_text and i == 0 else 6,
        )
        if chart.mark is not None:
            axes.axvline(chart.mark, color=LIGHT["muted"], linewidth=1.1, linestyle=":")
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            legend.setdefault(name, handle)
    if chart.mark is not None:
        late = chart.mark > ((chart.x.low or 0) + (chart.x.high or 1)) / 2
        grid[0].annotate(
            literal(chart.mark_text), (chart.mark, 1), (0, 3), grid[0].get_xaxis_transform(), "offset points",
            ha="right" if late else "left", size="small", color=LIGHT["muted"], in_layout=False,
        )  # fmt: skip
    if titled:
        figure.suptitle(literal(chart.title, 70), x=0.01, ha="left", size="large", weight="bold")
    if legend:
        figure.legend(list(legend.values()), list(legend), loc="outside lower left", ncols=columns)
    return figure, tips


def _turned(chart: Chart, width: float) -> tuple[float, int]:
    """Units that names on the x axis need if they have to be turned, and that only each n-th has room."""
    names = [literal(name, _most(width)[1]) for _, name in chart.x.names or ()]
    if not names:
        return 0, 1
    room, long = (width - _beside(chart, width) - 40) / len(names), _wide(names, width)
    return (0.75 * long if long + 6 > room else 0), max(1, round(1.4 * _letters(width) / room))


def _beside(chart: Chart, width: float) -> float:
    """Units that names on the y axes need."""
    return _wide([literal(name, _most(width)[0]) for panel in chart.panels for _, name in panel.y.names or ()], width)


def _panel(axes: Axes, panel: Panel, x: Axis, width: float) -> Tips:
    from matplotlib.patches import Rectangle

    tips: Tips = []
    for box in panel.boxes:
        label = _entry(box.name) if box.name else None
        at = box.x, box.y
        look: Any = {"color": LIGHT[box.color], "alpha": box.strength, "lw": 0, "label": label, "clip_on": False}
        axes.add_patch(Rectangle(at, box.width, box.height, **look))
        if box.text:
            axes.text(box.x + box.width / 2, box.y + box.height / 2, box.text, ha="center", va="center", size="small")
        tips += [(axes, at, (box.x + box.width, box.y + box.height), box.tip)] if box.tip else []
    axes.autoscale_view()
    for one in panel.curves:
        tips += _curve(axes, one, panel.unit, x)
    _axis(axes, "y", panel.y, _most(width)[0])
    return tips


def _curve(axes: Axes, one: Curve, unit: str, x: Axis) -> Tips:
    factor, color, empty = 100 if unit else 1, LIGHT[one.color], "none" if one.hollow else LIGHT[one.color]
    heights = [float("nan") if value is None else factor * value for value in one.y]
    if one.low:
        low, high = ([factor * (value or 0) for value in edge] for edge in (one.low, one.high))
        axes.fill_between(one.x, low, high, color=color, alpha=0.16, linewidth=0)
    for name, ends, at in (("xerr", one.across, one.x), ("yerr", one.along, heights)):
        if ends:
            reach: Any = [[abs(v - end[side]) for v, end in zip(at, ends, strict=True)] for side in (0, 1)]
            axes.errorbar(one.x, heights, **{name: reach}, fmt="none", color=color, elinewidth=1.3)
    # some dozen markers tell lines apart; one on every point would hide them
    every: Any = [] if one.sizes else max(1, len(one.x) // 12) if one.dash and not one.stepped else 1
    axes.plot(
        one.x, heights, color=color, linestyle=one.dash or "none", marker=one.marker, markersize=one.size,
        markerfacecolor=empty, markeredgewidth=1.6 if one.hollow else 0.6, markevery=every,
        drawstyle="steps-post" if one.stepped else "default", label=_entry(one.name) if one.listed else None,
    )  # fmt: skip
    if one.sizes:
        areas = [size**2 for size in one.sizes]
        axes.scatter(one.x, heights, areas, marker=one.marker, edgecolors=color, facecolors=empty, lw=1.6, zorder=3)
    said = one.tips or [
        f"{one.name}, step {at:g}: {number(value, unit)}{unit and ' %'}" for at, value in zip(one.x, one.y, strict=True)
    ]
    low, high = (-float("inf") if x.low is None else x.low), (float("inf") if x.high is None else x.high)
    places = [
        i for i, (at, value) in enumerate(zip(one.x, heights, strict=True)) if value == value and low <= at <= high
    ]
    return [(axes, (one.x[i], heights[i]), (one.x[i], heights[i]), said[i]) for i in map(int, thin(places, TIPS))]


def _entry(name: str) -> str:
    """A name for the legend, which would leave out one that begins with _."""
    return f" {literal(name)}" if name.startswith("_") else literal(name)


def _axis(axes: Axes, name: str, axis: Axis, most: int, turned: float = 0, every: int = 1) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    own = axes.xaxis if name == "x" else axes.yaxis
    if axis.log:
        axes.set(**{f"{name}scale": "log"})
        low, high = own.get_view_interval()
        own.set_major_locator(LogLocator(subs=(1,) if high > 300 * low else (1, 2, 5)))
        own.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        own.set_minor_formatter(NullFormatter())
    elif axis.whole:
        own.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))
    axes.set(**{f"{name}lim": (axis.low, axis.high), f"{name}label": axis.title})
    if axis.names is not None:
        shown = axis.names[::every]
        own.set_ticks([place for place, _ in shown], [literal(text, most) for _, text in shown])
        own.grid(visible=False)
        own.set_tick_params(length=0)
        for text in own.get_ticklabels() if turned else ():
            text.set(rotation=45, ha="right", va="center", rotation_mode="anchor")


# ---- the SVG of matplotlib as an element of a page --------------------------------------------------------------

_SVG = "{http://www.w3.org/2000/svg}"
_NAMES = {color: name for name, color in reversed(LIGHT.items())}  # of two that are equal, the first


def _plain(root: Xml.Element, key: str) -> Xml.Element:
    """Without namespaces, metadata, style sheets and ids that nothing names; with the theme's variables for colours."""
    for parent in list(root.iter()):
        for child in [one for one in parent if one.tag in (f"{_SVG}metadata", f"{_SVG}style")]:
            parent.remove(child)
    values = " ".join(value for one in root.iter() for name, value in one.attrib.items() if name != "id")
    used = {name: f"{key}-{i}" for i, name in enumerate(dict.fromkeys(re.findall(r"#([a-zA-Z]\w+)", values)))}
    for one in root.iter():
        one.tag, one.tail = one.tag.removeprefix(_SVG), None
        one.text = one.text if one.tag == "text" else None
        one.attrib = {
            name.split("}")[-1]: _value(name, value, used)
            for name, value in one.attrib.items()
            if (value in used if name == "id" else not value.startswith("rotate(-0 "))
        }
    return root


def _value(name: str, value: str, used: dict[str, str]) -> str:
    """An attribute with short numbers, the page's ids, the theme's colours and no font of its own."""
    if name == "id":
        return used[value]
    if name == "style":
        value = re.sub(r"(font-family|stroke-(linecap|linejoin|miterlimit)):[^;]*;?|(?<=[:;])\s+|;\s*$", "", value)
        return re.sub(r"#[0-9a-f]{6}", lambda found: f"var(--{_NAMES[found[0]]})", value)
    if "#" in value:
        return re.sub(r"#(\w+)", lambda found: f"#{used[found[1]]}", value)
    return re.sub(r"-?\d+\.\d+", lambda found: f"{float(found[0]):.1f}".removesuffix(".0"), " ".join(value.split()))


def _pointed(
    axes: Axes, first: tuple[float, float], last: tuple[float, float], text: str, height: float
) -> Xml.Element:
    """What is said of a place, as an element that cannot be seen."""
    (x, right), (low, top) = (sorted(side) for side in axes.transData.transform([first, last]).T.tolist())
    if first == last:
        kind, sides = "circle", {"cx": x, "cy": height - low, "r": 7.0}
    else:
        kind, sides = "rect", {"x": x, "y": height - top, "width": right - x, "height": top - low}
    found = Xml.Element(kind, {"class": "tip"} | {name: f"{value:.1f}" for name, value in sides.items()})
    Xml.SubElement(found, "title").text = literal(text, 120)
    return found
