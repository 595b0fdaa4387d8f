"""Class shares as a page, an image and lines for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from taskgraft.quantification.estimate import plural
from taskgraft.quantification.results import ClassShare, Distribution, PairShares, TaskShares
from taskgraft.report import drawing, formatting
from taskgraft.report.charts import Axis, Chart, Curve, Panel
from taskgraft.report.formatting import percent, several
from taskgraft.report.page import Block, Card, Page, Plot, Section, Table, Text, render

DRAWN = 25  # classes of a chart, the most frequent first
SHARE = Axis("share (%)", 0)
PRINTED = 20  # classes of a task on the terminal
SAYS = {
    "emq": "corrected by expectation-maximisation (EMQ) on calibrated probabilities",
    "pacc": "corrected by adjusted probabilistic counts (PACC)",
    "acc": "corrected by adjusted counts (ACC)",
    "naive": "counted, not corrected",
}
NAIVE = "The naive share is that of the answers as they are; rare classes collect the mistakes of frequent ones."


def table_shares(found: Distribution) -> list[str]:
    """The shares as lines: percentages with 95 % intervals beside the naive count, then what to know of them."""
    lines = []
    for task in found.tasks:
        lines += [f"{task.task}: {_counted(task)}, {SAYS[task.estimator]}"]
        lines += _lines([one for one in task.classes if one.share or one.naive])
        lines += [f"  note: {note}" for note in (*task.notes, task.unlike.text if task.unlike.flag else "") if note]
    for pair in found.pairs:
        lines += [f"{' × '.join(pair.tasks)}: {SAYS[pair.estimator]}", *_lines(pair.pairs)]
        lines += [f"  note: {note}" for note in pair.notes]
    lines += [f"note: {note}" for note in found.notes]
    if found.unreadable:
        lines.append(f"note: {several(found.unreadable, 'file or frame')} could not be read")
    return lines


def _lines(shares: Sequence[ClassShare]) -> list[str]:
    ordered = _ordered(shares)
    width = max([len(one.name) for one in ordered[:PRINTED]] + [5])
    head = f"  {'class':<{width}}  share %   95 % interval   naive %"
    rows = [
        f"  {one.name:<{width}}  {percent(one.share):>7}  {percent(one.low):>6} to {percent(one.high):>5}"
        f"  {percent(one.naive):>8}"
        for one in ordered[:PRINTED]
    ]
    rest = ordered[PRINTED:]
    more = [f"  and {len(rest)} more with {percent(sum(one.share for one in rest))} % together"] if rest else []
    return [head, *rows, *more]


def render_shares(found: Distribution) -> str:
    """The shares as one offline page."""
    sections = [_task_section(f"task{i}", task) for i, task in enumerate(found.tasks)]
    sections += [_pair_section(f"pair{i}", pair) for i, pair in enumerate(found.pairs)]
    what = several(found.images, "image or frame" if found.images == 1 else "image")
    cards = tuple(_card(task) for task in found.tasks)
    tasks = " and ".join(task.task for task in found.tasks)
    notes = [Text(note, "warning") for note in found.notes]
    if found.unreadable:
        notes.append(Text(f"{several(found.unreadable, 'file or frame')} could not be read.", "note"))
    sections.append(Section("about", "About these numbers", (*notes, *_about(found))))
    return render(
        Page(
            f"Shares of {tasks}",
            "taskgraft · class distribution",
            f"{what} of {', '.join(found.sources[:3])}, seen by {found.model}.",
            cards,
            tuple(sections),
            "This page needs no network.",
        )
    )


def _card(task: TaskShares) -> Card:
    best = _ordered(task.classes)[:3]
    lines = [f"{one.name}: {percent(one.share)} % ({percent(one.low)} to {percent(one.high)})" for one in best]
    flagged = bool(task.unlike.flag)
    if flagged:
        lines.append(task.unlike.text[:1].upper() + task.unlike.text[1:] + ".")
    return Card(f"Most frequent {task.task}?", best[0].name, tuple(lines), tone="poor" if flagged else "")


def _task_section(key: str, task: TaskShares) -> Section:
    caption = f"{_counted(task)[:1].upper()}{_counted(task)[1:]}; {SAYS[task.estimator]}. Bars are 95 % intervals."
    blocks: list[Block] = [_plot(key, f"Shares of {task.task}", caption, task.task, task.classes)]
    blocks += [Text(note[:1].upper() + note[1:] + ".", "note") for note in task.notes]
    said = task.unlike.text[:1].upper() + task.unlike.text[1:] + "."
    blocks.append(Text(said, "warning" if task.unlike.flag else "note"))
    return Section(f"{key}-section", task.task, tuple(blocks))


def _pair_section(key: str, pair: PairShares) -> Section:
    name = " × ".join(pair.tasks)
    caption = f"{SAYS[pair.estimator][:1].upper()}{SAYS[pair.estimator][1:]}. Bars are 95 % intervals."
    notes = tuple(Text(note[:1].upper() + note[1:] + ".", "note") for note in pair.notes)
    return Section(f"{key}-section", name, (_plot(key, f"Shares of {name}", caption, name, pair.pairs), *notes))


def _plot(key: str, title: str, caption: str, head: str, shares: Sequence[ClassShare]) -> Plot:
    ordered = _ordered(shares)
    rows = tuple(
        (one.name, percent(one.share), f"{percent(one.low)} to {percent(one.high)}", percent(one.naive))
        for one in ordered
    )
    table = Table(f"{title} (%)", (head, "Share", "95 % interval", "Naive"), rows)
    shown = ordered[:DRAWN]
    cut = f" The {DRAWN} most frequent of {len(ordered)}." if len(ordered) > DRAWN else ""
    return Plot(Chart(key, title, caption + cut, (_panel("", shown),), SHARE, kind="Dot chart"), (table,))


def _about(found: Distribution) -> tuple[Block, ...]:
    rows = tuple(
        (task.task, formatting.count(task.images), formatting.count(task.units), task.unit, f"{task.effective:,.0f}")
        for task in found.tasks
    )
    head = ("Task", "Images", "Units", "Unit", "Effective size")
    table = Table("What was counted", head, rows, (0, 3))
    text = (
        "Intervals resample whole units, and add what the few images of the task card leave open. "
        "The effective size is the number of independent images whose counts would vary as much. "
    )
    return (table, Text(text + NAIVE, "note"))


def _counted(task: TaskShares) -> str:
    units = "" if task.unit == "image" else f" in {task.units:,} {plural(task.unit, task.units)}"
    return f"{several(task.images, 'image')}{units}, effective size {task.effective:,.0f}"


def _ordered(shares: Sequence[ClassShare]) -> list[ClassShare]:
    return sorted(shares, key=lambda one: (-one.share, -one.naive))


def write_shares(found: Distribution, path: Path) -> None:
    """Draw the shares of every task with their intervals as a PNG file."""
    groups = [(task.task, task.classes) for task in found.tasks]
    groups += [(" × ".join(pair.tasks), pair.pairs) for pair in found.pairs]
    panels = tuple(_panel(name, _ordered(shares)[:DRAWN]) for name, shares in groups)
    drawing.png(Chart("shares", f"Class shares seen by {found.model}", "", panels, SHARE), path)


def _panel(name: str, shares: Sequence[ClassShare]) -> Panel:
    """Class shares in percent, one below the other: corrected with their intervals, and as counted."""
    rows = range(len(shares))
    corrected = Curve(
        "corrected, with its 95 % interval", "blue", "", "o", [100 * one.share for one in shares], rows,
        across=[(100 * one.low, 100 * one.high) for one in shares],
        tips=[f"{one.name}: {percent(one.share)} % ({percent(one.low)} to {percent(one.high)})" for one in shares],
    )  # fmt: skip
    naive = Curve(
        "naive", "vermillion", "", "D", [100 * one.naive for one in shares], rows, hollow=True,
        tips=[f"{one.name}: {percent(one.naive)} % of the answers" for one in shares],
    )  # fmt: skip
    names = tuple((row, one.name) for row, one in enumerate(shares))
    axis = Axis("", max(len(shares), 1) - 0.5, -0.5, names=names)
    return Panel(name, axis, (corrected, naive), height=70 + 24 * max(len(shares), 1))
