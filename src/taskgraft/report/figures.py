"""Charts of training: the figures of the reference experiment, old vs new accuracy, curves of one run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isnan

from taskgraft.methods.presets import is_baseline
from taskgraft.report import charts
from taskgraft.report import formatting as fmt
from taskgraft.report.charts import Axis, Chart, Curve, Panel, Points, Style, build_mean_curve, step_axis
from taskgraft.report.comparison_summary import Row, SeedMean
from taskgraft.report.run_summary import PARENT_AND_CHILD, is_taught, new_task, old_name, old_tasks, roles
from taskgraft.results.record import Comparison, Record, StepMetrics, VariantResult

TASK_A = Style("red", "-", "o")  # old, in the colors of the reference experiment
TASK_B = Style("blue", "-", "s")  # new
OLD_COLORS = charts.SERIES[1:6]  # of further old tasks beside a blue new one
OVERVIEW = "figure3"  # key of the figure of all configurations
TARGET = "two separate models"
ACCURACY = Axis("accuracy (%)", -2, 102)


def build_reference_figures(comparison: Comparison) -> tuple[Chart, ...]:
    """Build the figures of the reference experiment, without those that have no data.

    Figure 1 is plain fine-tuning at the highest learning rate, figure 2 at the lowest, figure 3 all configurations.
    """
    variants = [variant for variant in comparison.variants if variant.records]
    baselines = sorted(
        (variant for variant in variants if is_baseline(variant.method)), key=_learning_rate, reverse=True
    )
    figures = []
    if baselines:
        figures.append(_build_baseline_chart(1, "standard", baselines[0]))
    if baselines and _learning_rate(baselines[-1]) < _learning_rate(baselines[0]):
        figures.append(_build_baseline_chart(2, "low", baselines[-1]))
    if variants:
        figures.append(_build_overview_chart(variants))
    return tuple(chart for chart in figures if chart is not None)


def _learning_rate(variant: VariantResult) -> float:
    return variant.config["lr"]


def _build_baseline_chart(number: int, kind: str, variant: VariantResult) -> Chart | None:
    records, record = variant.records, variant.records[0]
    curves = _mean_curves([
        (f"{_old_mean_name(record)} (task A)", TASK_A, map(_old_accuracy, records)),
        (f"{new_task(record).name} (task B)", TASK_B, map(_new_accuracy, records)),
    ])  # fmt: skip
    if not curves:
        return None
    end = _last_step(curves)
    caption = (
        f"Plain fine-tuning at the {kind} learning rate ({_learning_rate(variant):g}): validation accuracy on the old "
        f"task (red circles) and the new one (blue squares). {describe_bands(variant.records)}"
    )
    panel = Panel("", ACCURACY, (*_parent_level(record, end), *curves), percent=True)
    return Chart(f"figure{number}", f"Figure {number}: {variant.label}", caption, (panel,), step_axis(0, end))


def _build_overview_chart(variants: Sequence[VariantResult]) -> Chart | None:
    record = variants[0].records[0]
    styles = charts.choose_styles([variant.method for variant in variants])
    styled = [(variant.label, style, variant.records) for variant, style in zip(variants, styles, strict=True)]
    old = _mean_curves((label, style, map(_old_accuracy, records)) for label, style, records in styled)
    new = _mean_curves((label, style, map(_new_accuracy, records)) for label, style, records in styled)
    title, axis, before = f"{_old_mean_name(record)} (task A)", ACCURACY, list[Curve]()
    if old:
        grey = Style("grey", "-", "")
        before = _parent_training(record, [(task.name, grey) for task in old_tasks(record)])
        old = [*before, *_parent_level(record, _last_step([*old, *new])), *old]
    else:
        old = _mean_curves((label, style, map(_old_agreement, records)) for label, style, records in styled)
        title = f"{_old_mean_name(record)}: agreement with the parent (proxy)"
        axis = ACCURACY._replace(title="agreement (%)")
    if not old and not new:
        return None
    end = _last_step([*old, *new])
    start = _first_step(before, end)
    panels = (
        Panel(title, axis, tuple(old), percent=True),
        Panel(f"{new_task(record).name} (task B)", ACCURACY, tuple(new), percent=True),
    )
    longest = max((variant.records for variant in variants), key=len)
    caption = f"All configurations, from the same parent. {describe_bands(longest)}{_describe_before(before)}"
    mark, text = (0, "task B starts") if start < 0 else (None, "")
    panels = tuple(panel for panel in panels if panel.curves)
    return Chart(OVERVIEW, "Figure 3: all configurations", caption, panels, step_axis(start, end), mark, text)


def build_tradeoff_chart(
    rows: Sequence[Row], old: str, new: str, target: tuple[float, float] | None = None
) -> Chart | None:
    """Build the scatter plot of old against new accuracy, a marker per configuration; None without accuracies.

    Args:
        rows: The configurations.
        old: Name of the old tasks.
        new: Name of the new task.
        target: Old and new accuracy of two separate models, if known: a cross.
    """
    curves = []
    for row, style in zip(rows, charts.choose_styles([row.method for row in rows]), strict=True):
        if row.old is None or row.new is None:
            continue
        tooltip = f"{row.label}: {fmt.percent(row.old.mean)} % old, {fmt.percent(row.new.mean)} % new"
        curves.append(Curve(
            row.label, style._replace(dash=""), [100 * row.old.mean], [100 * row.new.mean], hollow=style.dash != "-",
            size=10, x_bars=_error_bars(row.old), y_bars=_error_bars(row.new), tooltips=(tooltip,),
        ))  # fmt: skip
    if not curves:
        return None
    caption = "Up and to the right is better. Bars are 95 % t-intervals over seeds, which need at least two."
    if target is not None:
        x, y = (100 * value for value in target)
        tooltip = f"{TARGET}: {fmt.percent(target[0])} % old, {fmt.percent(target[1])} % new"
        curves.append(Curve(TARGET, Style("ink", "", "+"), [x], [y], hollow=True, size=16, tooltips=(tooltip,)))
        caption += f" The cross is the target: two separate models, the parent and one trained for {new} alone."
    panel = Panel("", Axis(f"{new}: accuracy (%)"), tuple(curves), height=330)
    x = Axis(f"{old}: accuracy (%)")
    return Chart("tradeoff-plot", "Final accuracy of every configuration", caption, (panel,), x, kind="Scatter plot")


def _error_bars(mean: SeedMean) -> tuple[tuple[float, float], ...]:
    """The ends of a t-interval in percent, which over two seeds may reach beyond what an accuracy can be."""
    if isnan(mean.half_width):
        return ()
    low, high = 100 * (mean.mean - mean.half_width), 100 * (mean.mean + mean.half_width)
    return ((max(0.0, low), min(100.0, high)),)


def build_accuracy_chart(record: Record) -> Chart | None:
    """Build the validation accuracy of every task over the steps of one run; None where nothing was measured."""
    styles = _task_styles(record)
    accuracies = _mean_curves((name, style, [_mean(record.history, [name])]) for name, style in styles.items())
    measured = {curve.name for curve in accuracies}
    proxies = _mean_curves(
        (f"{name}, agreement (proxy)", style._replace(dash=":"), [_mean(record.history, [name], "agreement")])
        for name, style in styles.items()
        if name not in measured
    )
    if not accuracies and not proxies:
        return None
    end = _last_step([*accuracies, *proxies])
    compared = record.tasks if is_taught(record) else old_tasks(record)
    name = roles(record).before
    before = _parent_training(record, [(task.name, styles[task.name]) for task in compared], name)
    levels = [
        _level(f"{task.name}, {name}", styles[task.name].color, task.parent.mean, end)
        for task in compared
        if task.parent
    ]
    start = _first_step(before, end)
    if len(levels) > 1:  # they have their tasks' colors; three legend entries per task would fill a phone
        levels, before = ([curve._replace(in_legend=False) for curve in curves] for curves in (levels, before))
    dashed = f" Dashed: the {name}'s." if levels else ""
    caption = (
        f"Validation accuracy of every task.{dashed} Dotted line: the selected step.{_describe_before(before, name)}"
    )
    panel = Panel("", ACCURACY, (*before, *levels, *accuracies, *proxies), percent=True)
    selected = f"selected: step {record.step}"
    return Chart("accuracy", "Accuracy", caption, (panel,), step_axis(start, end), record.step, selected)


def _task_styles(record: Record) -> dict[str, Style]:
    styles = {task.name: TASK_B for task in record.tasks}
    markers = ("o", *charts.MARKERS[2:])  # all but the new task's
    for i, task in enumerate(old_tasks(record)):
        color = OLD_COLORS[i % len(OLD_COLORS)] if i else "red"
        styles[task.name] = Style(color, "-", markers[i % len(markers)])
    return styles


def build_loss_chart(key: str, title: str, records: Sequence[Record], caption: str = "") -> Chart | None:
    """Build every loss term over steps, the mean over runs; logarithmic where terms differ by orders of magnitude.

    Up to four terms differ in dash and color, further ones in markers too: to the color-blind, eight colors are fewer.
    """
    names = dict.fromkeys(name for record in records for line in record.history for name in line.terms)
    curves = _mean_curves(
        (
            name,
            Style(charts.SERIES[i % 8], charts.DASHES[i % 4], "" if i < 4 else charts.MARKERS[i % 8]),
            [_mean(record.history, [name], "terms") for record in records],
        )
        for i, name in enumerate(names)
    )
    if not curves:
        return None
    positive = [value for curve in curves for value in curve.y if value is not None and value > 0]
    log = bool(positive) and max(positive) > 100 * min(positive)
    if log:
        curves = [_drop_nonpositive(curve) for curve in curves if any(value and value > 0 for value in curve.y)]
        caption = f"{caption} Logarithmic scale, without zeros.".strip()
    panel = Panel("", Axis("loss", log=True) if log else Axis("loss", 0), tuple(curves))
    return Chart(key, title, caption, (panel,), step_axis(0, _last_step(curves)))


def _drop_nonpositive(curve: Curve) -> Curve:
    """Leave out points at 0, such as the data's loss of a step without labels."""
    kept = [i for i, value in enumerate(curve.y) if value is not None and value > 0]
    floor = min(value for value in curve.y if value is not None and value > 0) / 2
    return curve._replace(
        x=[curve.x[i] for i in kept],
        y=[curve.y[i] for i in kept],
        low=[max(curve.low[i] or 0, floor) for i in kept if curve.low],
        high=[max(curve.high[i] or 0, floor) for i in kept if curve.high],
    )


def describe_bands(records: Sequence[Record]) -> str:
    """Describe what lines and bands of curves over these runs are."""
    if len(records) < 2:
        return "One seed."
    return f"Lines: mean over {len(records)} seeds. Bands: from the lowest to the highest seed."


def _describe_before(before: Sequence[Curve], name: str = PARENT_AND_CHILD.before) -> str:
    return f" Before step 0: the training of the {name}." if before else ""


def _old_mean_name(record: Record) -> str:
    return f"{'mean of ' if len(old_tasks(record)) != 1 else ''}{old_name(record)}"


def _mean_curves(curves: Iterable[tuple[str, Style, Iterable[Points]]]) -> list[Curve]:
    return [curve for name, style, runs in curves if (curve := build_mean_curve(name, style, runs))]


def _mean(history: Sequence[StepMetrics], names: Sequence[str], field: str = "accuracy") -> Points:
    """Mean of a logged field over tasks (or loss terms), at the steps where all of them were logged."""
    logged = [(line.step, getattr(line, field)) for line in history]
    return [
        (step, sum(values[name] for name in names) / len(names))
        for step, values in logged
        if names and all(name in values for name in names)
    ]


def _old_accuracy(record: Record) -> Points:
    return _mean(record.history, [task.name for task in old_tasks(record)])


def _new_accuracy(record: Record) -> Points:
    return _mean(record.history, [new_task(record).name])


def _old_agreement(record: Record) -> Points:
    return _mean(record.history, [task.name for task in old_tasks(record)], "agreement")


def _parent_training(
    record: Record, styles: Sequence[tuple[str, Style]], name: str = PARENT_AND_CHILD.before
) -> list[Curve]:
    """The parent's own training, shifted to end at step 0; a curve per task that it logged."""
    last = max((line.step for line in record.parent_history), default=0)
    shifted = [line.model_copy(update={"step": line.step - last}) for line in record.parent_history]
    return _mean_curves(
        (f"{task}, {name}'s training", style._replace(marker=""), [_mean(shifted, [task])]) for task, style in styles
    )


def _parent_level(record: Record, end: float) -> list[Curve]:
    """The parent's mean accuracy on the old tasks, where all were measured."""
    levels = [task.parent.mean for task in old_tasks(record) if task.parent]
    if not levels or len(levels) < len(old_tasks(record)):
        return []
    return [_level("parent (before)", "grey", sum(levels) / len(levels), end)]


def _level(name: str, color: str, value: float, end: float) -> Curve:
    return Curve(name, Style(color, "--", ""), (0, end), (value, value))


def _last_step(curves: Sequence[Curve]) -> float:
    return max(curve.x[-1] for curve in curves)


def _first_step(before: Sequence[Curve], end: float) -> float:
    """Where the x axis starts: the parent's training is shown for at most as many steps as the child's."""
    return max(before[0].x[0], -end) if before else 0
