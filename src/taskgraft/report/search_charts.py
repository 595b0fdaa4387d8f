"""The charts of a search: frontier, slices, importance, learning curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from taskgraft.report import charts
from taskgraft.report.charts import Axis, Box, Chart, Curve, Panel, over_steps
from taskgraft.report.drawing import literal
from taskgraft.report.formatting import percent
from taskgraft.results.search import Candidate, SearchResult, TrialResult

WIDE = 20  # values this many times apart are drawn on a logarithmic axis
SHOWN = 12  # learning curves: the best ones
SYMBOLS = {"score": "*", "new": "s", "old": "^"}  # of the three choices


def frontier(found: SearchResult) -> Chart:
    """Old against new accuracy: every trial, the frontier with its intervals, the choices."""
    known = [one for one in found.trials if one.old is not None]
    curves = [
        _cloud("stopped early", [one for one in known if one.state == "stopped"], "muted"),
        _cloud("complete", [one for one in known if one.state == "complete"], "blue"),
        _marked("frontier", found.frontier, "vermillion", "-", "D")._replace(
            stepped=True,
            across=[(100 * one.old.low, 100 * one.old.high) for one in found.frontier],
            along=[(100 * one.new.low, 100 * one.new.high) for one in found.frontier],
        ),
    ]
    for one in found.choices:
        if one.candidate:
            mark = _marked(one.rule, [one.candidate], "green", "", SYMBOLS[one.goal])
            curves.append(mark._replace(hollow=True, size=15))
    agreed = "agreement with the parent" if found.proxy else "accuracy"
    x = Axis(f"{', '.join(found.tasks[:-1])}: {agreed} (%)")
    panel = Panel("", Axis(f"{found.tasks[-1]}: accuracy (%)"), tuple(one for one in curves if one.x), height=480)
    caption = "Up and right is better. Bars are 95 % intervals over images; hollow points were stopped early."
    return Chart("frontier-plot", "Old against new accuracy of every trial", caption, (panel,), x, kind="Scatter plot")


def _cloud(name: str, trials: Sequence[TrialResult], color: str) -> Curve:
    old, new = [_points(one.old) for one in trials], [_points(one.new) for one in trials]
    return Curve(name, color, "", "o", old, new, hollow=name != "complete",
                 tips=[_told(f"trial {one.number}: {one.method}", one.old, one.new) for one in trials])  # fmt: skip


def _marked(name: str, line: Sequence[Candidate], color: str, dash: str, marker: str) -> Curve:
    tips = [_told(f"trial {one.trial}: {one.method}, rate {one.lr:g}", one.old.mean, one.new.mean) for one in line]
    old, new = [100 * one.old.mean for one in line], [100 * one.new.mean for one in line]
    return Curve(name, color, dash, marker, old, new, tips=tips)


def _told(what: str, old: float | None, new: float | None) -> str:
    return f"{literal(what, 80)}: {percent(old)} % old, {percent(new)} % new"


def slice_of(found: SearchResult, key: str, number: int) -> Chart:
    """Old and new accuracy over one setting."""
    known = [one for one in found.trials if one.old is not None and key in one.params]
    values: list[Any] = [one.params[key] for one in known]
    words = any(isinstance(value, str) for value in values)
    names = list(dict.fromkeys(map(str, values))) if words else []
    log = not words and min(values, default=0) > 0 and max(values) / min(values) > WIDE
    curves = []
    for name, color, marker in (("old", "red", "o"), ("new", "blue", "s")):
        for state in ("complete", "stopped"):
            own = [
                (value, one)
                for value, one in zip(values, known, strict=True)
                if (one.state == "complete") == (state == "complete")
            ]
            curves.append(Curve(
                name, color, "", marker, [names.index(str(value)) if words else value for value, _ in own],
                [_points(getattr(one, name)) for _, one in own], hollow=state != "complete",
                tips=[f"trial {one.number}, {one.state}: {percent(getattr(one, name))} % {name}" for _, one in own],
            ))  # fmt: skip
    x = Axis(key, -0.5, len(names) - 0.5, names=tuple(enumerate(names))) if words else Axis(key, log=log)
    panel = Panel("", Axis("accuracy (%)"), tuple(one for one in curves if one.x))
    hint = "Circles: old accuracy; squares: new accuracy; hollow: stopped early."
    return Chart(f"slice{number}", key, hint, (panel,), x, kind="Scatter plot")


def importance(found: SearchResult) -> Chart:
    """How much of the spread of each accuracy a setting explains."""
    names = list(dict.fromkeys(key for own in found.importance.values() for key in own))
    boxes = [
        Box(0, names.index(key) + above, 100 * value, 0.36, color, name=name, tip=f"{key}, {name}: {percent(value)} %")
        for name, color, above in (("old", "red", -0.38), ("new", "blue", 0.02))
        for key, value in found.importance.get(name, {}).items()
        if math.isfinite(value)
    ]
    said = "Share of the spread among trials that a setting explains (PED-ANOVA); few trials make it rough."
    y = Axis("", len(names) - 0.5, -0.5, names=tuple(enumerate(names)))
    panel = Panel("", y, boxes=tuple(boxes), height=60 + 34 * len(names))
    return Chart("importance", "Importance", said, (panel,), Axis("share of the spread (%)", 0), kind="Bar chart")


def curves(found: SearchResult) -> Chart:
    """Mean of old and new accuracy over the steps, of the best trials."""
    best = sorted((one for one in found.trials if one.score is not None), key=lambda one: -(one.score or 0))[:SHOWN]
    looks = charts.styles([str(one.number) for one in best])
    lines = []
    for one, look in zip(best, looks, strict=True):
        points = [(line.step, _score(line.accuracy, line.agreement, found.tasks)) for line in one.history]
        known = [(step, score) for step, score in points if score is not None]
        if known:
            steps, scores = zip(*known, strict=True)
            lines.append(Curve(f"trial {one.number}", *look, steps, scores))
    end = max((one.reached for one in found.trials), default=1)
    said = (
        f"Mean of old and new accuracy of the best {len(best)} trials; trials are compared at "
        f"step {', '.join(map(str, found.rungs))}."
    )
    panel = Panel("", Axis("mean accuracy (%)", -2, 102), tuple(lines), unit="%")
    return Chart("curve-plot", "Learning curves", said, (panel,), over_steps(0, end))


def _score(accuracy: dict[str, float], agreement: dict[str, float], tasks: Sequence[str]) -> float | None:
    if not accuracy:
        return None
    old = [accuracy.get(task, agreement.get(task, 0.0)) for task in tasks[:-1]]
    new = next((share for task, share in accuracy.items() if task not in tasks[:-1]), None)
    return None if new is None else (sum(old) / max(1, len(old)) + new) / 2


def _points(share: float | None) -> float:
    return float("nan") if share is None else 100 * share
