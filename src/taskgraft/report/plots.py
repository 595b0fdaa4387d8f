"""Charts as plotly figures: plain dictionaries, since the page needs no more than their JSON.

Colours are tokens ("@blue", "@blue:0.2" with opacity) that the page's script replaces by those of light or
dark paper. Every name goes through `plain_text`: plotly reads a little HTML in its labels.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from taskgraft.report.charts import MARKERS, Chart, Curve, Panel, Style
from taskgraft.report.evidence import Bin
from taskgraft.report.summary import Row, Share

Spec = dict[str, Any]

LONG = 40  # letters of a name in a legend
CELLS = 12  # classes up to which a confusion matrix has numbers in its cells
GAP = 0.12  # between two panels, as a share of the height


def plain_text(text: str, most: int = LONG) -> str:
    """A name that plotly shows as it is, cut where it would push the plot aside."""
    cut = text if len(text) <= most else f"{text[: most - 1]}…"
    return html.escape(" ".join(cut.split()), quote=False)


def lines(chart: Chart) -> Spec:
    """A chart's panels above each other."""
    data, layout = [], frame(axis("step", range=[chart.start, _roomy(chart)]))
    shown: set[str] = set()
    height = (1 - GAP * (len(chart.panels) - 1)) / len(chart.panels)
    for i, panel in enumerate(chart.panels):
        key = "" if i == 0 else str(i + 1)
        top = 1 - i * (height + GAP)
        layout[f"yaxis{key}"] = _y_axis(panel, [max(top - height, 0), top])
        layout["annotations"] += _title(panel.title, top)
        for one in panel.curves:
            data += _traces(one, f"y{key}", panel.unit, one.listed and one.name not in shown)
            shown.add(one.name)
    layout["xaxis"]["anchor"] = f"y{len(chart.panels)}" if len(chart.panels) > 1 else "y"
    if chart.mark is not None:
        _mark(layout, chart)
    return {"data": data, "layout": layout}


def _roomy(chart: Chart) -> float:
    """A little beyond the last step, so that its marker is whole."""
    return chart.end + 0.015 * (chart.end - chart.start)


def frame(x: Spec) -> Spec:
    """The frame of every plot: fonts, margins, legend below; `x` is its axis."""
    return {
        "autosize": True,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": "@ink"},
        "margin": {"l": 8, "r": 12, "t": 26, "b": 8},
        "xaxis": x,
        "annotations": [],
        "shapes": [],
        "hovermode": "closest",
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": "@muted:0.6", "activecolor": "@ink"},
        "hoverlabel": {
            "namelength": -1,
            "bgcolor": "@paper",
            "font": {"color": "@ink"},
            "bordercolor": "@muted",
        },
        "legend": {
            "orientation": "h",
            "yref": "container",
            "y": 0,
            "yanchor": "bottom",
            "x": 0,
            "bgcolor": "rgba(0,0,0,0)",
        },
    }


def axis(title: str, **more: Any) -> Spec:
    """An axis with its title, in the style of all."""
    return {
        "title": {"text": title, "standoff": 8},
        "automargin": True,
        "gridcolor": "@grid",
        "linecolor": "@muted",
        "zeroline": False,
        "ticks": "outside",
        "tickcolor": "@grid",
        **more,
    }


def _y_axis(panel: Panel, domain: list[float]) -> Spec:
    own = axis(panel.axis, domain=domain)
    if panel.unit:
        return {**own, "range": [-2, 102], "dtick": 20}
    return {**own, "type": "log", "dtick": 1, "tickformat": "~g"} if panel.log else {**own, "rangemode": "tozero"}


def _title(text: str, top: float) -> list[Spec]:
    if not text:
        return []
    place = {"xref": "paper", "yref": "paper", "x": 0, "y": top, "xanchor": "left", "yanchor": "bottom"}
    return [{**place, "text": f"<b>{plain_text(text, 60)}</b>", "showarrow": False, "font": {"color": "@ink"}}]


def _mark(layout: Spec, chart: Chart) -> None:
    at = {"xref": "x", "yref": "paper", "x0": chart.mark, "x1": chart.mark, "y0": 0, "y1": 1}
    layout["shapes"].append({"type": "line", **at, "line": {"color": "@muted", "width": 1, "dash": "dot"}})
    late = chart.mark is not None and chart.mark > (chart.start + chart.end) / 2
    layout["annotations"].append(
        {
            "xref": "x",
            "yref": "paper",
            "x": chart.mark,
            "y": 1,
            "xanchor": "right" if late else "left",
            "yanchor": "bottom",
            "text": plain_text(chart.mark_text),
            "showarrow": False,
            "font": {"color": "@muted", "size": 12},
        }
    )


def _traces(one: Curve, axis: str, unit: str, legend: bool) -> list[Spec]:
    factor = 100 if unit else 1
    name = plain_text(one.name)
    common = {"type": "scatter", "yaxis": axis, "legendgroup": name, "name": name}
    band = {
        **common,
        "x": [*one.x, *reversed(one.x)],
        "y": _scaled([*one.high, *reversed(one.low)], factor),
        "fill": "toself",
        "fillcolor": f"@{one.colour}:0.16",
        "mode": "lines",
        "line": {"width": 0, "color": f"@{one.colour}:0.16"},
        "hoverinfo": "skip",
        "showlegend": False,
    }
    line = {
        **common,
        "x": list(one.x),
        "y": _scaled(one.y, factor),
        "mode": "lines+markers" if one.marker else "lines",
        "line": {"color": f"@{one.colour}", "width": 2, "dash": one.dash},
        "showlegend": legend,
        "hovertemplate": f"step %{{x}}: %{{y:{'.1f' if unit else '.4g'}}}",
    }
    if one.marker:
        # some dozen markers tell lines apart; one on every point would hide them
        line["marker"] = {"symbol": one.marker, "size": 7, "color": f"@{one.colour}", "maxdisplayed": 12}
    return [band, line] if one.low else [line]


def _scaled(values: Sequence[float | None], factor: float) -> list[float | None]:
    return [None if value is None else round(value * factor, 6) for value in values]


def scatter(rows: Sequence[Row], looks: Sequence[Style], names: tuple[str, str]) -> Spec:
    """Old accuracy against new accuracy of each arrangement, with its intervals over seeds."""
    layout = frame(axis(f"{plain_text(names[0])}: accuracy (%)"))
    layout["yaxis"] = axis(f"{plain_text(names[1])}: accuracy (%)")
    data = []
    for row, look in zip(rows, looks, strict=True):
        if row.old is None or row.new is None:
            continue
        colour, hollow = f"@{look.colour}", "" if look.dash == "solid" else "-open"
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": plain_text(row.label),
                "x": [100 * row.old.mean],
                "y": [100 * row.new.mean],
                "error_x": _error(row.old, colour),
                "error_y": _error(row.new, colour),
                "marker": {
                    "symbol": look.marker + hollow,
                    "size": 12,
                    "color": colour,
                    "line": {"width": 2, "color": colour},
                },
                "hovertemplate": "%{x:.1f} old, %{y:.1f} new",
            }
        )
    return {"data": data, "layout": layout}


def _error(share: Share, colour: str) -> Spec:
    known = share.half == share.half  # NaN for one seed
    value = 100 * share.half if known else 0
    return {"type": "constant", "value": value, "visible": known, "color": colour, "thickness": 1, "width": 4}


def confusion(counts: Sequence[Sequence[int]], classes: Sequence[str], answers: Sequence[str]) -> Spec:
    """A confusion matrix: rows are true classes, columns answers, colours shares of the row."""
    sums = [max(sum(row), 1) for row in counts]
    shares = [[100 * cell / total for cell in row] for row, total in zip(counts, sums, strict=True)]
    layout = frame(axis("answer", **_ticks(answers), tickangle=-45))
    layout["yaxis"] = axis("true class", autorange="reversed", **_ticks(classes))
    layout["xaxis"] |= {"showgrid": False, "ticks": ""}
    layout["yaxis"] |= {"showgrid": False, "ticks": ""}
    trace = {
        "type": "heatmap",
        "z": shares,
        "zmin": 0,
        "zmax": 100,
        "customdata": [list(row) for row in counts],
        "text": [[str(cell) if cell else "" for cell in row] for row in counts],
        "texttemplate": "%{text}" if len(classes) <= CELLS else "",
        "colorscale": [[0, "@cold"], [1, "@heat"]],
        "showscale": False,
        "xgap": 1,
        "ygap": 1,
        "hovertemplate": "true %{y}, answered %{x}: %{customdata} images (%{z:.1f} %)<extra></extra>",
    }
    return {"data": [trace], "layout": layout}


def _ticks(names: Sequence[str]) -> Spec:
    """Names at positions: two classes that are cut to the same name stay two."""
    return {
        "tickvals": list(range(len(names))),
        "ticktext": [plain_text(name, 22) for name in names],
        "tickmode": "array",
    }


def reliability(tasks: Sequence[tuple[str, Sequence[Bin], Sequence[Bin]]]) -> Spec:
    """Accuracy over confidence of each task, before and after its temperature, with the diagonal of a calibrated model.

    After is the solid line; it may be empty.
    """
    layout = frame(axis("confidence (%)", range=[0, 102], dtick=20))
    layout["yaxis"] = axis("accuracy (%)", range=[0, 102], dtick=20)
    diagonal = {"x": [0, 100], "y": [0, 100], "mode": "lines", "type": "scatter", "name": "calibrated"}
    data: list[Spec] = [{**diagonal, "line": {"color": "@muted", "dash": "dash", "width": 1}, "hoverinfo": "skip"}]
    for i, (name, before, after) in enumerate(tasks):
        look = f"@{('red', 'blue', 'green', 'purple', 'orange', 'sky')[i % 6]}", MARKERS[i % len(MARKERS)]
        if after:
            data.append(_bins(f"{name}, before", before, *look, "dot"))
            data.append(_bins(f"{name}, calibrated", after, *look, "solid"))
        else:
            data.append(_bins(name, before, *look, "solid"))
    return {"data": data, "layout": layout}


def _bins(name: str, bins: Sequence[Bin], colour: str, marker: str, dash: str) -> Spec:
    most = max((one.images for one in bins), default=1)
    symbol = marker if dash == "solid" else f"{marker}-open"
    sizes = [round(4 + 10 * (one.images / most) ** 0.5, 1) for one in bins]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": plain_text(name),
        "x": [100 * one.confidence for one in bins],
        "y": [100 * one.accuracy for one in bins],
        "customdata": [one.images for one in bins],
        "line": {"color": colour, "width": 2, "dash": dash},
        "marker": {"symbol": symbol, "size": sizes, "color": colour, "opacity": 1},
        "hovertemplate": "%{customdata} images at %{x:.1f} confidence: %{y:.1f} right",
    }
