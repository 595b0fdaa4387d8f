"""Charts of runs: the founding text's three figures, old against new, one run's accuracies, loss terms."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isnan
from pathlib import Path

from taskgraft.methods.presets import is_baseline
from taskgraft.report import charts, drawing, summary
from taskgraft.report.charts import Axis, Chart, Curve, Panel, Points, Style, over_steps
from taskgraft.report.formatting import percent
from taskgraft.report.summary import Row, Share
from taskgraft.results.record import Comparison, Record, StepMetrics, VariantResult

TERMS = "Every term of the objective as it was optimised, strength included."
TASK_A = Style("red", "-", "o")
TASK_B = Style("blue", "-", "s")
BEFORE = 1  # of the parent's training, as many times the child's steps are shown at first
PARENTS = Style("grey", "-", "")
ACCURACY = Axis("accuracy (%)", -2, 102)


def founding_figures(comparison: Comparison) -> tuple[Chart, ...]:
    """Figures 1 to 3 of the founding text, without those that have no data."""
    baselines = [one for one in comparison.variants if is_baseline(one.method) and one.records]
    baselines.sort(key=lr, reverse=True)
    found = []
    if baselines:
        found.append(_baseline("figure1", 1, "standard", baselines[0]))
    if len(baselines) > 1 and lr(baselines[-1]) < lr(baselines[0]):
        found.append(_baseline("figure2", 2, "low", baselines[-1]))
    found.append(_all_methods(comparison))
    return tuple(chart for chart in found if chart is not None)


def write_figures(comparison: Comparison, folder: Path) -> list[Path]:
    """Write figure1.png, figure2.png and figure3.png into `folder`, without those that have no data."""
    paths = []
    for chart in founding_figures(comparison):
        paths.append(folder / f"{chart.key}.png")
        drawing.png(chart, paths[-1])
    return paths


def frontier(rows: Sequence[Row], looks: Sequence[Style], names: tuple[str, str]) -> Chart:
    """Old accuracy against new accuracy of each arrangement, with its intervals over seeds."""
    curves = []
    for row, look in zip(rows, looks, strict=True):
        if row.old is None or row.new is None:
            continue
        at = [100 * share.mean for share in (row.old, row.new)]
        reach = [() if isnan(one.half) else (_ends(one),) for one in (row.old, row.new)]
        tip = f"{row.label}: {percent(row.old.mean)} % old, {percent(row.new.mean)} % new"
        curves.append(Curve(
            row.label, look.color, "", look.marker, at[:1], at[1:], hollow=look.dash != "-", size=10,
            across=reach[0], along=reach[1], tips=(tip,),
        ))  # fmt: skip
    caption = "Up and right is better. Bars are 95 % t-intervals over seeds; one seed has none."
    panel = Panel("", Axis(f"{names[1]}: accuracy (%)"), tuple(curves), height=380)
    x = Axis(f"{names[0]}: accuracy (%)")
    return Chart("frontier-plot", "Every arrangement at its kept step", caption, (panel,), x, kind="Scatter plot")


def _ends(share: Share) -> tuple[float, float]:
    """Where a share's interval ends, in percent: over two seeds it may be wider than what a share can be."""
    return max(0.0, 100 * (share.mean - share.half)), min(100.0, 100 * (share.mean + share.half))


def lr(variant: VariantResult) -> float:
    """The learning rate of an arrangement; 0 where its settings do not say."""
    value = variant.config.get("lr")
    return float(value) if isinstance(value, int | float) else 0.0


def old_name(record: Record) -> str:
    """What the old tasks are called together."""
    names = [task.name for task in summary.old_tasks(record)]
    return names[0] if len(names) == 1 else f"mean of {len(names)} old tasks"


def new_name(record: Record) -> str:
    """What the new task is called."""
    return ", ".join(task.name for task in summary.new_tasks(record))


def points(record: Record, new: bool) -> Points:
    """Steps and mean accuracy of the new or of the old tasks, where all of them were evaluated."""
    names = [task.name for task in record.tasks if task.new == new]
    return [
        (line.step, sum(line.accuracy[name] for name in names) / len(names))
        for line in record.history
        if names and all(name in line.accuracy for name in names)
    ]


def _agreements(record: Record) -> Points:
    return [
        (line.step, sum(line.agreement.values()) / len(line.agreement)) for line in record.history if line.agreement
    ]


def _level(record: Record, end: float) -> list[Curve]:
    known = [task.parent.mean for task in summary.old_tasks(record) if task.parent is not None]
    if not known or len(known) < len(summary.old_tasks(record)):
        return []
    return [_flat("parent", "grey", sum(known) / len(known), end)]


def _flat(name: str, color: str, value: float, end: float) -> Curve:
    """A dashed line at one height."""
    return Curve(name, color, "--", "", (0, end), (value, value))


def _baseline(key: str, number: int, kind: str, variant: VariantResult) -> Chart | None:
    first = variant.records[0]
    old, new = old_name(first), new_name(first)
    curves = [
        charts.curve(f"{old} (task A)", TASK_A, (points(one, False) for one in variant.records)),
        charts.curve(f"{new} (task B)", TASK_B, (points(one, True) for one in variant.records)),
    ]
    kept = [one for one in curves if one is not None]
    if not kept:
        return None
    end = max(one.x[-1] for one in kept)
    caption = (
        f"The baseline at the {kind} learning rate ({lr(variant):g}): validation accuracy on the old "
        f"task (red, circles) while the new one (blue, squares) is learnt. {bands(variant.records)}"
    )
    panel = Panel("", ACCURACY, (*_level(first, end), *kept), unit="%")
    return Chart(key, f"Figure {number}: {variant.label}", caption, (panel,), over_steps(0, end))


def bands(records: Sequence[Record]) -> str:
    """What lines and bands of curves over these runs mean."""
    if len(records) < 2:
        return "One seed."
    return f"Lines are means over {len(records)} seeds, bands go from the lowest seed to the highest."


def _all_methods(comparison: Comparison) -> Chart | None:
    variants = [one for one in comparison.variants if one.records]
    if not variants:
        return None
    looks = charts.styles([one.method for one in variants])
    above = _panel(variants, looks, new=False)
    proxy = not above
    if proxy:
        above = _curves((one.label, look, map(_agreements, one.records)) for one, look in _pairs(variants, looks))
    below = _panel(variants, looks, new=True)
    first = variants[0].records[0]
    if not above and not below:
        return None
    end = max(one.x[-1] for one in (*above, *below))
    before = [] if proxy else before_curves(first, [(task.name, PARENTS) for task in summary.old_tasks(first)])
    start = max(before[0].x[0], -BEFORE * end) if before else 0
    title = f"{old_name(first)}: agreement with the parent, a proxy" if proxy else f"{old_name(first)} (task A)"
    level = [] if proxy else _level(first, end)
    panels = (
        Panel(title, Axis("agreement (%)", -2, 102) if proxy else ACCURACY, (*before, *level, *above), unit="%"),
        Panel(f"{new_name(first)} (task B)", ACCURACY, tuple(below), unit="%"),
    )
    panels = tuple(panel for panel in panels if panel.curves)
    most = max(variants, key=lambda one: len(one.records)).records
    caption = f"All arrangements from the same parent. {bands(most)}{_shared(before)}"
    text = "task B begins" if start < 0 else ""
    return Chart(
        "figure3", "Figure 3: all arrangements", caption, panels, over_steps(start, end), 0 if text else None, text
    )


def _shared(before: Sequence[Curve]) -> str:
    return " Left of step 0: the parent's own training." if before else ""


def _pairs(variants: Sequence[VariantResult], looks: Sequence[Style]) -> Iterable[tuple[VariantResult, Style]]:
    return zip(variants, looks, strict=True)


def _panel(variants: Sequence[VariantResult], looks: Sequence[Style], new: bool) -> list[Curve]:
    return _curves(
        (one.label, look, [points(record, new) for record in one.records]) for one, look in _pairs(variants, looks)
    )


def _curves(parts: Iterable[tuple[str, Style, Iterable[Points]]]) -> list[Curve]:
    found = [charts.curve(name, style, runs) for name, style, runs in parts]
    return [one for one in found if one is not None]


def before_curves(record: Record, looks: Iterable[tuple[str, Style]]) -> list[Curve]:
    """The parent's own training, shifted so that it ends at step 0; one curve a task that it logged."""
    lines = record.parent_history
    last = max((line.step for line in lines), default=0)
    found = []
    for task, style in looks:
        known = [(line.step - last, line.accuracy[task]) for line in lines if task in line.accuracy]
        found.append(charts.curve(f"{task}, parent's training", style._replace(marker=""), [known]))
    return [one for one in found if one is not None]


def accuracy_chart(record: Record) -> Chart | None:
    """Validation accuracy of every task over the steps of one run."""
    looks = _task_styles(record)
    learned = _curves(
        (name, look, [[(line.step, line.accuracy[name]) for line in record.history if name in line.accuracy]])
        for name, look in looks.items()
    )
    proxies = _curves(
        (f"{name}, agreement (proxy)", look._replace(dash=":"), [_agreement_of(record.history, name)])
        for name, look in looks.items()
        if name not in {one.name for one in learned}
    )
    if not learned and not proxies:
        return None
    end = max(one.x[-1] for one in (*learned, *proxies))
    before = before_curves(record, ((task.name, looks[task.name]) for task in summary.old_tasks(record)))
    levels = [
        _flat(f"{task.name}, parent", looks[task.name].color, task.parent.mean, end)
        for task in summary.old_tasks(record)
        if task.parent is not None
    ]
    start = max(before[0].x[0], -BEFORE * end) if before else 0
    if len(levels) > 1:  # they have their tasks' colours; a legend of three entries a task would fill a phone
        levels, before = ([one._replace(listed=False) for one in part] for part in (levels, before))
    dashed = " Dashed: the parent's." if levels else ""
    caption = f"Validation accuracy of every task.{dashed} The dotted line is the step that was kept."
    panel = Panel("", ACCURACY, (*before, *levels, *learned, *proxies), unit="%")
    kept = f"kept: step {record.step}"
    x = over_steps(start, end)
    return Chart("accuracy", "Accuracy over steps", caption + _shared(before), (panel,), x, record.step, kept)


def _task_styles(record: Record) -> dict[str, Style]:
    others = iter(range(1, len(record.tasks) + 1))
    found = {}
    for task in record.tasks:
        if task.new:
            found[task.name] = TASK_B
        else:
            i = next(others)
            color = "red" if i == 1 else charts.SERIES[1:6][i % 5]
            found[task.name] = Style(color, "-", ("o", *charts.MARKERS[2:])[(i - 1) % 7])
    return found


def _agreement_of(history: Sequence[StepMetrics], name: str) -> Points:
    return [(line.step, line.agreement[name]) for line in history if name in line.agreement]


def loss_chart(key: str, title: str, records: Sequence[Record]) -> Chart | None:
    """Every loss term over steps, mean over runs; logarithmic where terms differ by orders of magnitude."""
    names = list(dict.fromkeys(name for one in records for line in one.history for name in line.terms))
    found = [charts.curve(name, _look(i), _terms(records, name)) for i, name in enumerate(names)]
    curves = [one for one in found if one is not None]
    if not curves:
        return None
    positive = [value for one in curves for value in one.y if value is not None and value > 0]
    log = bool(positive) and max(positive) > 100 * min(positive)
    caption = "Logarithmic scale; zeros are left out." if log else ""
    shown = tuple(_positive(one) for one in curves) if log else tuple(curves)
    panel = Panel("", Axis("loss", log=True) if log else Axis("loss", 0), shown)
    return Chart(key, title, caption, (panel,), over_steps(0, max(one.x[-1] for one in shown)))


def _look(i: int) -> Style:
    """Four dashes; from the fifth curve on markers too, since the colour-blind see eight colours as fewer."""
    return Style(charts.SERIES[i % 8], charts.DASHES[i % 4], "" if i < 4 else charts.MARKERS[i % 8])


def _terms(records: Sequence[Record], name: str) -> list[Points]:
    return [[(line.step, line.terms[name]) for line in one.history if name in line.terms] for one in records]


def _positive(one: Curve) -> Curve:
    """A curve with gaps where a logarithm has none."""
    floor = min((value for value in one.y if value is not None and value > 0), default=1.0)
    return one._replace(
        y=tuple(value if value is not None and value > 0 else None for value in one.y),
        low=tuple(max(value or 0, floor / 2) for value in one.low),
        high=tuple(max(value or 0, floor / 2) for value in one.high),
    )
