"""Class prevalences as a page, a figure and lines for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from taskgraft.quantification.prevalence import ClassPrevalence, Distribution, TaskPrevalence, plural
from taskgraft.report import charts
from taskgraft.report import formatting as fmt
from taskgraft.report.charts import Axis, Chart, Curve, Panel, Style
from taskgraft.report.page import Figure, Table, render

MAX_PLOTTED = 25  # classes of a chart, the most frequent ones
MAX_PRINTED = 20  # classes of a task on the terminal
PREVALENCE = Axis("prevalence (%)", 0)
ESTIMATORS = {
    "auto": "corrected where the counts differ from the task card's by more than chance (mean of EMQ and PACC)",
    "emq": "corrected by expectation-maximization (EMQ) on calibrated probabilities",
    "pacc": "corrected by probabilistic adjusted classify and count (PACC)",
    "acc": "corrected by adjusted classify and count (ACC)",
    "naive": "classify and count, not corrected",
}


def format_distribution(distribution: Distribution) -> list[str]:
    """Format lines for the terminal: percentages with 95 % intervals beside uncorrected counts, then notes."""
    lines = []
    for task in distribution.tasks:
        lines += [f"{task.task}: {_describe_sample(task)}, {ESTIMATORS[task.estimator]}"]
        lines += _format_classes([result for result in task.classes if result.prevalence or result.naive])
        lines += [f"  note: {note}" for note in (*task.notes, *([task.ood.text] if task.ood.flag else []))]
    for pair in distribution.pairs:
        lines += [f"{' × '.join(pair.tasks)}: {ESTIMATORS[pair.estimator]}", *_format_classes(pair.pairs)]
        lines += [f"  note: {note}" for note in pair.notes]
    lines += [f"note: {note}" for note in distribution.notes]
    if distribution.unreadable:
        lines.append(f"note: {fmt.pluralize(distribution.unreadable, 'file or frame')} could not be read")
    return lines


def _format_classes(classes: Sequence[ClassPrevalence]) -> list[str]:
    classes = _by_prevalence(classes)
    width = max([len(result.name) for result in classes[:MAX_PRINTED]] + [5])
    lines = [f"  {'class':<{width}}  prevalence %  95 % interval   counted %"]
    lines += [
        f"  {result.name:<{width}}  {fmt.percent(result.prevalence):>12}  {fmt.percent(result.low):>5} to "
        f"{fmt.percent(result.high):>5}  {fmt.percent(result.naive):>10}"
        for result in classes[:MAX_PRINTED]
    ]
    rest = classes[MAX_PRINTED:]
    total = fmt.percent(sum(result.prevalence for result in rest))
    return [*lines, *([f"  {len(rest)} others, {total} % in total"] if rest else [])]


def render_distribution(distribution: Distribution) -> str:
    """Render the prevalences as a page.

    Args:
        distribution: The estimates of every task and pair of tasks.

    Returns:
        One offline HTML page.
    """
    sections = []
    for i, task in enumerate(distribution.tasks):
        description = f"{_describe_sample(task)}; {ESTIMATORS[task.estimator]}"
        figure = _build_figure(f"task{i}", task.task, description, task.classes)
        sections.append((task.task, figure, task.notes, task.ood))
    for i, pair in enumerate(distribution.pairs):
        name = " × ".join(pair.tasks)
        figure = _build_figure(f"pair{i}", name, ESTIMATORS[pair.estimator], pair.pairs)
        sections.append((name, figure, pair.notes, None))
    rows = [
        (task.task, f"{task.images:,}", f"{task.units:,}", task.unit, f"{task.effective_size:,.0f}")
        for task in distribution.tasks
    ]
    return render(
        "distribution.html.j2",
        distribution=distribution,
        most_frequent=[(task, _by_prevalence(task.classes)[:3]) for task in distribution.tasks],
        sections=sections,
        sample=Table("Sample", ("Task", "Images", "Units", "Unit", "Effective size"), rows, (0, 3)),
    )


def write_distribution_figure(distribution: Distribution, path: Path) -> None:
    """Write the prevalences of every task and pair, with their intervals, as one PNG file."""
    groups = [(task.task, task.classes) for task in distribution.tasks]
    groups += [(" × ".join(pair.tasks), pair.pairs) for pair in distribution.pairs]
    panels = tuple(_build_panel(name, _by_prevalence(classes)[:MAX_PLOTTED]) for name, classes in groups)
    charts.write_png(Chart("prevalence", f"Class prevalence, {distribution.model}", "", panels, PREVALENCE), path)


def _describe_sample(task: TaskPrevalence) -> str:
    units = "" if task.unit == "image" else f" in {task.units:,} {plural(task.unit, task.units)}"
    return f"{fmt.pluralize(task.images, 'image')}{units}, effective size {task.effective_size:,.0f}"


def _by_prevalence(classes: Sequence[ClassPrevalence]) -> list[ClassPrevalence]:
    return sorted(classes, key=lambda result: (-result.prevalence, -result.naive))


def _build_figure(key: str, name: str, description: str, classes: Sequence[ClassPrevalence]) -> Figure:
    title, classes = f"Prevalence of {name}", _by_prevalence(classes)
    rows = [
        (result.name, fmt.percent(result.prevalence), f"{fmt.percent(result.low)} to {fmt.percent(result.high)}",
         fmt.percent(result.naive))
        for result in classes
    ]  # fmt: skip
    table = Table(f"{title} (%)", (name, "Prevalence", "95 % interval", "Counted"), rows)
    caption = f"{fmt.to_sentence(description)} Bars are 95 % intervals."
    if len(classes) > MAX_PLOTTED:
        caption += f" The {MAX_PLOTTED} most frequent of {len(classes)}."
    chart = Chart(key, title, caption, (_build_panel("", classes[:MAX_PLOTTED]),), PREVALENCE, kind="Dot chart")
    return Figure(chart, [table])


def _build_panel(name: str, classes: Sequence[ClassPrevalence]) -> Panel:
    """A row per class: its corrected prevalence with the interval, and the uncorrected count."""
    rows = range(len(classes))
    corrected = Curve(
        "corrected, with 95 % interval", Style("blue", "", "o"), [100 * result.prevalence for result in classes], rows,
        x_bars=[(100 * result.low, 100 * result.high) for result in classes],
        tooltips=[f"{result.name}: {fmt.percent(result.prevalence)} % ({fmt.percent(result.low)} to "
                  f"{fmt.percent(result.high)})" for result in classes],
    )  # fmt: skip
    counted = Curve(
        "counted", Style("vermillion", "", "D"), [100 * result.naive for result in classes], rows, hollow=True,
        tooltips=[f"{result.name}: {fmt.percent(result.naive)} % of the predictions" for result in classes],
    )  # fmt: skip
    axis = Axis("", max(len(classes), 1) - 0.5, -0.5, names=tuple(enumerate(result.name for result in classes)))
    return Panel(name, axis, (corrected, counted), height=70 + 24 * max(len(classes), 1))
