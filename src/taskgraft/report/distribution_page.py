"""Class shares as a page, a picture and lines for the terminal."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from taskgraft.record import atomic
from taskgraft.report import share_plots, wording
from taskgraft.report.looks import LIGHT
from taskgraft.report.page import Block, Card, Page, Plot, Section, Table, Text, render
from taskgraft.report.stills import DOTS, WIDTH, literal
from taskgraft.report.wording import percent, several
from taskgraft.shares.measure import plural
from taskgraft.shares.result import ClassShare, Distribution, PairShares, TaskShares

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DRAWN = 25  # classes of a chart, the most frequent first
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
    what = several(found.images, "picture or frame" if found.images == 1 else "picture")
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
    label = f"Dot chart. {title}. {caption}{cut}"
    return Plot(
        key, title, caption + cut, label, share_plots.shares(shown), (table,), "large" if len(shown) > 12 else "square"
    )


def _about(found: Distribution) -> tuple[Block, ...]:
    rows = tuple(
        (task.task, wording.count(task.images), wording.count(task.units), task.unit, f"{task.effective:,.0f}")
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
    from matplotlib.figure import Figure

    groups = [(task.task, task.classes) for task in found.tasks]
    groups += [(" × ".join(pair.tasks), pair.pairs) for pair in found.pairs]
    drawn = [(name, _ordered(shares)[:DRAWN]) for name, shares in groups]
    heights = [0.9 + 0.26 * max(len(shares), 1) for _, shares in drawn]
    with warnings.catch_warnings(), atomic(path) as aside:
        # a name in a script that the built-in font lacks is drawn as boxes: no reason to stop or to speak
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        figure = Figure(figsize=(WIDTH, 0.6 + sum(heights)), dpi=DOTS, layout="constrained", facecolor="white")
        grid = figure.subplots(len(drawn), 1, squeeze=False, height_ratios=heights)
        for axes, (name, shares) in zip(grid[:, 0], drawn, strict=True):
            _draw(axes, name, shares)
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=2, frameon=False, fontsize=9)
        figure.savefig(aside, format="png", metadata={"Software": None})


def _draw(axes: Axes, name: str, shares: Sequence[ClassShare]) -> None:
    rows = range(len(shares))
    middle = [100 * one.share for one in shares]
    reach = [[100 * (one.share - one.low) for one in shares], [100 * (one.high - one.share) for one in shares]]
    axes.errorbar(
        middle, rows, xerr=reach, fmt="o", color=LIGHT["blue"], markersize=5, linewidth=1.6,
        label="corrected, with its 95 % interval",
    )  # fmt: skip
    naive = [100 * one.naive for one in shares]
    axes.plot(naive, rows, "D", color=LIGHT["vermillion"], fillstyle="none", markersize=5, label="naive")
    axes.set_yticks(list(rows), [literal(one.name) for one in shares])
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("share (%)", color=LIGHT["ink"])
    axes.set_title(literal(name), loc="left", fontsize=10.5, color=LIGHT["ink"])
    axes.grid(axis="x", color=LIGHT["grid"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=LIGHT["muted"], length=3)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(LIGHT["muted"])
