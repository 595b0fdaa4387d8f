"""Class shares and their intervals as a plotly figure."""

from __future__ import annotations

from collections.abc import Sequence

from taskgraft.report.plots import Spec, axis, frame, plain_text
from taskgraft.shares.result import ClassShare


def shares(found: Sequence[ClassShare]) -> Spec:
    """Class shares in percent, one below the other: corrected with their intervals, and as counted."""
    rows, names = list(range(len(found))), [plain_text(_short(one.name)) for one in found]
    drawn = frame(axis("share (%)", rangemode="tozero"))
    drawn["yaxis"] = axis("", autorange="reversed", tickvals=rows, ticktext=names)
    corrected = {
        "type": "scatter",
        "mode": "markers",
        "name": "corrected, with its 95 % interval",
        "x": [round(100 * one.share, 4) for one in found],
        "y": rows,
        "customdata": [[round(100 * one.low, 2), round(100 * one.high, 2)] for one in found],
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [round(100 * (one.high - one.share), 4) for one in found],
            "arrayminus": [round(100 * (one.share - one.low), 4) for one in found],
            "color": "@blue",
            "thickness": 2,
            "width": 4,
        },
        "marker": {"symbol": "circle", "size": 9, "color": "@blue"},
        "hovertemplate": "%{y}: %{x:.1f} % (%{customdata[0]:.1f} to %{customdata[1]:.1f})<extra></extra>",
    }
    naive = {
        "type": "scatter",
        "mode": "markers",
        "name": "naive",
        "x": [round(100 * one.naive, 4) for one in found],
        "y": rows,
        "marker": {"symbol": "diamond-open", "size": 9, "color": "@vermillion", "line": {"width": 2}},
        "hovertemplate": "%{y}: %{x:.1f} % of the answers<extra></extra>",
    }
    return {"data": [corrected, naive], "layout": drawn}


def _short(name: str) -> str:
    """A name cut in its middle: the ends tell pairs and models apart."""
    return name if len(name) <= 32 else f"{name[:19]}…{name[-12:]}"
