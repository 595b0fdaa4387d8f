"""The plots of a search: frontier, parallel coordinates, slices, importance, learning curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from taskgraft.record import Interval
from taskgraft.report import charts
from taskgraft.report.charts import Chart, Curve, Panel
from taskgraft.report.plots import Spec, axis, frame, plain_text
from taskgraft.search.choices import Candidate
from taskgraft.search.result import Found, Tried

WIDE = 20  # values this many times apart are drawn on a logarithmic axis
SHOWN = 12  # learning curves: the best ones


def frontier(found: Found) -> Spec:
    """Old against new accuracy: every trial, the frontier with its intervals, the choices."""
    shape = frame(axis(f"{old_name(found)} (%)"))
    shape["yaxis"] = axis(f"{plain_text(found.tasks[-1])}: accuracy (%)")
    known = [one for one in found.trials if one.old is not None]
    data = [
        _cloud("stopped early", [one for one in known if one.state == "stopped"], "@muted", "circle-open"),
        _cloud("complete", [one for one in known if one.state == "complete"], "@blue", "circle"),
    ]
    line = found.frontier
    data.append({
        "type": "scatter", "mode": "lines+markers", "name": "frontier",
        "x": [_points(c.old.mean) for c in line], "y": [_points(c.new.mean) for c in line],
        "error_x": _bars([c.old for c in line]), "error_y": _bars([c.new for c in line]),
        "line": {"color": "@vermillion", "width": 2, "shape": "hv"},
        "marker": {"color": "@vermillion", "size": 8, "symbol": "diamond"},
        "text": [plain_text(_title(c), 80) for c in line],
        "hovertemplate": "%{text}<br>%{x:.1f} old, %{y:.1f} new<extra></extra>",
    })  # fmt: skip
    for chosen in found.choices:
        if chosen.candidate:
            data.append({
                "type": "scatter", "mode": "markers", "name": plain_text(chosen.rule, 60),
                "x": [_points(chosen.candidate.old.mean)], "y": [_points(chosen.candidate.new.mean)],
                "marker": {"size": 17, "symbol": _symbol(chosen.goal), "color": "@green", "line": {"width": 2.5}},
                "hovertemplate": plain_text(_title(chosen.candidate), 80) + "<extra></extra>",
            })  # fmt: skip
    return {"data": [trace for trace in data if trace["x"]], "layout": shape}


def coordinates(found: Found) -> Spec | None:
    """A line for each trial through its settings to its Score; None for fewer than two trials."""
    known = [one for one in found.trials if one.score is not None]
    if len(known) < 2:
        return None
    axes = [_axis_of(key, [one.params[key] for one in known]) for key in found.space]
    for name, shares in (("old", [one.old for one in known]), ("new", [one.new for one in known])):
        axes.append(_axis_of(f"{name} (%)", [_points(share) for share in shares]))
    axes.append(_axis_of("Score", [_points(one.score) for one in known]))
    ranks = sorted((one.score or 0.0 for one in known), reverse=True)
    good = ranks[max(0, math.ceil(len(ranks) / 4) - 1)]
    data = []
    for row, one in sorted(enumerate(known), key=lambda pair: pair[1].score or 0.0):
        best = (one.score or 0.0) >= good
        data.append({
            "type": "scatter", "mode": "lines+markers", "showlegend": False, "name": f"trial {one.number}",
            "x": list(range(len(axes))), "y": [places[row] for _, places, _ in axes],
            "line": {"color": "@vermillion" if best else "@muted:0.45", "width": 2.5 if best else 1},
            "marker": {"size": 5, "color": "@vermillion" if best else "@muted:0.45"},
            "hovertemplate": plain_text(f"trial {one.number}: {one.method}", 80) + "<extra></extra>",
        })  # fmt: skip
    shape = frame(axis("", tickvals=list(range(len(axes))), ticktext=[name for name, _, _ in axes], tickmode="array",
                       range=[-0.35, len(axes) - 0.6]))  # fmt: skip
    shape["yaxis"] = {"visible": False, "range": [-0.06, 1.06]}
    shape["annotations"] += [
        {"x": place, "y": height, "text": text, "showarrow": False, "xanchor": "left", "xshift": 6,
         "font": {"size": 11, "color": "@muted"}}
        for place, (_, _, ticks) in enumerate(axes) for height, text in ticks
    ]  # fmt: skip
    return {"data": data, "layout": shape}


def slice_of(found: Found, key: str) -> Spec:
    """Old and new accuracy over one setting."""
    known = [one for one in found.trials if one.old is not None and key in one.params]
    values = [one.params[key] for one in known]
    words = any(isinstance(value, str) for value in values)
    log = not words and min(values, default=0) > 0 and max(values) / min(values) > WIDE
    shape = frame(axis(plain_text(key), **({"type": "log"} if log else {"type": "category"} if words else {})))
    shape["yaxis"] = axis("accuracy (%)")
    data = []
    for name, colour, symbol, of in (("old", "@red", "circle", "old"), ("new", "@blue", "square", "new")):
        data.append({
            "type": "scatter", "mode": "markers", "name": name,
            "x": [plain_text(v, 30) if isinstance(v, str) else v for v in values],
            "y": [_points(getattr(one, of)) for one in known],
            "marker": {"color": colour, "size": 8,
                       "symbol": [symbol if one.state == "complete" else f"{symbol}-open" for one in known]},
            "text": [f"trial {one.number}, {one.state}" for one in known],
            "hovertemplate": "%{text}: %{y:.1f}",
        })  # fmt: skip
    return {"data": data, "layout": shape}


def importance(found: Found) -> Spec:
    """How much of the spread of each accuracy a setting explains."""
    shape = frame(axis("share of the spread (%)", rangemode="tozero"))
    shape["yaxis"] = axis("", autorange="reversed")
    shape["barmode"] = "group"
    data = []
    for name, colour in (("old", "@red"), ("new", "@blue")):
        shares = found.importance.get(name, {})
        data.append({
            "type": "bar", "orientation": "h", "name": name,
            "y": [plain_text(key) for key in shares], "x": [_points(value) for value in shares.values()],
            "marker": {"color": colour}, "hovertemplate": "%{y}: %{x:.0f} %",
        })  # fmt: skip
    return {"data": data, "layout": shape}


def curves(found: Found) -> Chart:
    """Mean of old and new accuracy over the steps, of the best trials."""
    best = sorted((one for one in found.trials if one.score is not None), key=lambda one: -(one.score or 0))[:SHOWN]
    looks = charts.styles([str(one.number) for one in best])
    lines = []
    for one, look in zip(best, looks, strict=True):
        points = [(line.step, _score(line.accuracy, line.agreement, found.tasks)) for line in one.history]
        known = [(step, score) for step, score in points if score is not None]
        name = f"trial {one.number}"
        lines.append(
            Curve(name, look.colour, look.dash, look.marker, tuple(s for s, _ in known), tuple(v for _, v in known))
        )
    end = max((one.reached for one in found.trials), default=1)
    return Chart(
        "curve-plot", "Learning curves",
        f"Mean of old and new accuracy of the best {len(best)} trials; trials are compared at "
        f"step {', '.join(map(str, found.rungs))}.",
        (Panel("", "mean accuracy (%)", tuple(lines)),), 0, end,
    )  # fmt: skip


def old_name(found: Found) -> str:
    """What the first objective is called."""
    names = plain_text(", ".join(found.tasks[:-1]))
    return f"{names}: agreement with the parent" if found.proxy else f"{names}: accuracy"


def _score(accuracy: dict[str, float], agreement: dict[str, float], tasks: Sequence[str]) -> float | None:
    if not accuracy:
        return None
    old = [accuracy.get(task, agreement.get(task, 0.0)) for task in tasks[:-1]]
    new = next((share for task, share in accuracy.items() if task not in tasks[:-1]), None)
    return None if new is None else (sum(old) / max(1, len(old)) + new) / 2


def _axis_of(key: str, values: Sequence[Any]) -> tuple[str, list[float], list[tuple[float, str]]]:
    """An axis of the parallel coordinates: its name, each value's place in [0, 1], and what stands at which height."""
    name = plain_text(key, 24)
    if any(isinstance(value, str) for value in values):
        names = list(dict.fromkeys(values))
        heights = {value: place / max(1, len(names) - 1) for place, value in enumerate(names)}
        return name, [heights[value] for value in values], [(heights[v], plain_text(v, 22)) for v in names]
    low, high = min(values), max(values)
    log = low > 0 and high / low > WIDE
    ends = (math.log(low), math.log(high)) if log else (low, high)
    width = ends[1] - ends[0] or 1.0
    places = [((math.log(value) if log else value) - ends[0]) / width for value in values]
    return name, places, [(0.0, f"{low:.4g}"), *([(1.0, f"{high:.4g}")] if high > low else [])]


def _cloud(name: str, trials: Sequence[Tried], colour: str, symbol: str) -> Spec:
    return {
        "type": "scatter", "mode": "markers", "name": name,
        "x": [_points(one.old) for one in trials], "y": [_points(one.new) for one in trials],
        "marker": {"color": colour, "symbol": symbol, "size": 8},
        "text": [plain_text(f"trial {one.number}: {one.method}", 80) for one in trials],
        "hovertemplate": "%{text}<br>%{x:.1f} old, %{y:.1f} new<extra></extra>",
    }  # fmt: skip


def _bars(shares: Sequence[Interval]) -> Spec:
    return {
        "type": "data", "symmetric": False, "thickness": 1, "width": 3, "color": "@vermillion:0.6",
        "array": [_points(share.high - share.mean) for share in shares],
        "arrayminus": [_points(share.mean - share.low) for share in shares],
    }  # fmt: skip


def _title(one: Candidate) -> str:
    return f"trial {one.trial}: {one.method}, rate {one.rate:g}"


def _symbol(goal: str) -> str:
    return {"score": "star-open", "new": "square-open", "old": "triangle-up-open"}[goal]


def _points(share: float | None) -> float | None:
    return None if share is None else round(100 * share, 4)
