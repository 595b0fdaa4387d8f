"""What a comparison comes to: one row of numbers an arrangement, the best of them, and the Markdown table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import isnan
from typing import NamedTuple

from taskgraft import metrics
from taskgraft.report import formatting
from taskgraft.results.record import Comparison, Record, TaskResult, VariantResult

SEEDS_NEEDED = 3  # below that a t-interval over seeds says next to nothing


class Share(NamedTuple):
    """Mean over seeds in [0, 1], half-width of its 95 % t-interval (NaN for one seed), number of seeds."""

    mean: float
    half: float
    seeds: int

    def __str__(self) -> str:
        """The mean with its interval, in percent: 80.7 ± 0.6."""
        if isnan(self.half):
            return f"{formatting.percent(self.mean)} (1 seed)"
        return f"{formatting.percent(self.mean)} ± {formatting.percent(self.half)}"


class Row(NamedTuple):
    """One arrangement over its seeds; None where nothing could be measured."""

    label: str
    method: str
    seeds: int
    score: Share | None
    old: Share | None  # Score_A: mean of the old tasks
    new: Share | None  # Score_B
    forgetting: Share | None  # parent - child
    gap: Share | None  # two separate models - this one
    agreement: Share | None
    seconds: float  # of all its runs
    added: int | None  # parameters
    parameters: float | None  # the child's over the parent's
    flops: float | None  # of one image, the child's over the parent's

    @property
    def rank(self) -> float:
        """What rows are ordered by: Score, else the mean of agreement (a proxy) and new accuracy."""
        if self.score is not None:
            return self.score.mean
        known = [share.mean for share in (self.agreement, self.new) if share is not None]
        return sum(known) / len(known) - 1 if len(known) == 2 else float("-inf")  # below any Score


def summarize(comparison: Comparison) -> tuple[Row, ...]:
    """A row for every arrangement, in the given order."""
    return tuple(_row(comparison, variant) for variant in comparison.variants)


def best(rows: Iterable[Row]) -> int | None:
    """Position of the best row, the first among equals; None when none could be ranked."""
    ranks = [row.rank for row in rows]
    top = max(ranks, default=float("-inf"))
    return ranks.index(top) if top > float("-inf") else None


def _row(comparison: Comparison, variant: VariantResult) -> Row:
    records = variant.records
    return Row(
        variant.label,
        variant.method,
        len(records),
        _share(record.score for record in records),
        _share(_mean(accuracy(task, record) for task in old_tasks(record)) for record in records),
        _share(_mean(accuracy(task, record) for task in new_tasks(record)) for record in records),
        _share(_mean(_of(task.forgetting) for task in old_tasks(record)) for record in records),
        _share(gap(record, _separate(comparison, variant, i)) for i, record in enumerate(records)),
        _share(_mean(_of(task.agreement) for task in old_tasks(record)) for record in records),
        sum(seconds(record) for record in records),
        added(records[0]) if records else None,
        _times(records[0].parameters) if records else None,
        _times(records[0].flops) if records else None,
    )


def old_tasks(record: Record) -> tuple[TaskResult, ...]:
    """The tasks that the parent had."""
    return tuple(task for task in record.tasks if not task.new)


def new_tasks(record: Record) -> tuple[TaskResult, ...]:
    """The tasks that were learnt in this run, usually one."""
    return tuple(task for task in record.tasks if task.new)


def accuracy(task: TaskResult, record: Record) -> float | None:
    """A task's accuracy in the kept model, else what was logged at the kept step."""
    if task.child is not None:
        return task.child.mean
    logged = [line.accuracy.get(task.name) for line in record.history if line.step == record.step]
    return next((value for value in logged if value is not None), None)


def gap(record: Record, separate: float | None) -> float | None:
    """Mean accuracy of two separate models, the parent and one for the new task, minus the Score."""
    parents = [_of(task.parent) for task in old_tasks(record)]
    known = [value for value in parents if value is not None]
    if record.score is None or separate is None or not known or len(known) < len(parents):
        return None
    models = {str(i): value for i, value in enumerate([*known, separate])}
    return metrics.gap(record.score, models)


def separate_of(record: Record) -> float | None:
    """Accuracy of a model trained for the new task alone, where this run knows one."""
    return _mean(task.separate for task in new_tasks(record))


def _separate(comparison: Comparison, variant: VariantResult, position: int) -> float | None:
    """The separate model's accuracy: of the same seed where there are as many, else the mean over seeds."""
    record = variant.records[position]
    values = [value for task in new_tasks(record) for value in comparison.separate.get(task.name, ())]
    if not values:
        return separate_of(record)
    return values[position] if len(values) == len(variant.records) else sum(values) / len(values)


def added(record: Record) -> int | None:
    """Parameters that the child has more than its parent, where the record says."""
    found = record.parameters
    if "added" in found:
        return found["added"]
    return found["child"] - found["parent"] if {"child", "parent"} <= set(found) else None


def _times(counts: Mapping[str, int]) -> float | None:
    """The child's count over the parent's; None where one of them is not known."""
    return counts["child"] / counts["parent"] if counts.get("parent") and "child" in counts else None


def slower(record: Record) -> str:
    """How much more arithmetic an image costs than the parent took; nothing where it is under a tenth more."""
    counts = record.flops
    times = counts["child"] / counts["parent"] if counts.get("parent") else 1.0
    return f"; each image takes {times:.2g} times the parent's arithmetic" if times > 1.1 else ""


def seconds(record: Record) -> float:
    """Wall time of a run: its total, else the sum of its parts."""
    return record.seconds.get("total", sum(record.seconds.values()))


def _of(interval: metrics.Interval | None) -> float | None:
    return None if interval is None else interval.mean


def _mean(values: Iterable[float | None]) -> float | None:
    """Mean of values; None when one is missing or there are none: a mean over fewer tasks would mislead."""
    kept = list(values)
    known = [value for value in kept if value is not None]
    return sum(known) / len(known) if known and len(known) == len(kept) else None


def _share(values: Iterable[float | None]) -> Share | None:
    known = [value for value in values if value is not None]
    return Share(*metrics.t_interval(known), len(known)) if known else None


def text(share: Share | None) -> str:
    """A share as text, a dash where nothing was measured."""
    return formatting.NOTHING if share is None else str(share)


def cells(row: Row) -> tuple[str, ...]:
    """A row of the table, in the order of HEAD."""
    shares = (row.score, row.old, row.new, row.forgetting, row.gap, row.agreement)
    return (
        *map(text, shares),
        *(formatting.NOTHING if n is None else f"{n:.2f} ×" for n in (row.parameters, row.flops)),
    )


def differing(variants: Sequence[VariantResult]) -> dict[str, list[str]]:
    """The settings in which arrangements differ, and the values of each, in their order."""
    settings = [dict(formatting.flat(one.config)) for one in variants]
    names = [name for name in dict.fromkeys(name for one in settings for name in one) if name != "seed"]
    values = {name: [one.get(name, formatting.NOTHING) for one in settings] for name in names}
    return {name: own for name, own in values.items() if len(set(own)) > 1}


def remarks(comparison: Comparison, rows: tuple[Row, ...]) -> list[str]:
    """What a reader must know to read the table rightly."""
    lines = []
    seeds = [row.seeds for row in rows if row.seeds]
    if any(number < SEEDS_NEEDED for number in seeds):
        fewest = formatting.several(min(seeds), "seed")
        lines.append(
            f"{fewest} only: three seeds are needed to compare arrangements. A difference seen here may be chance."
        )
    else:
        lines.append("± is the 95 % t-interval of the mean over seeds.")
    if any(row.seeds and row.score is None for row in rows):
        lines.append(
            "Old accuracy is unknown, because no old validation images were given: there is no Score. "
            "Agreement with the parent is a proxy, not an accuracy; give old images with --old-val DIR."
        )
    unlike = differing(comparison.variants)
    if set(unlike) - {"lr"}:
        told = "; ".join(f"{name} ({', '.join(dict.fromkeys(values))})" for name, values in unlike.items())
        lines.append(f"The arrangements differ in more than their method: {told}.")
    if all(row.gap is None for row in rows):
        lines.append("No separate model was trained for the new task, so the gap to two models is unknown.")
    return lines


HEAD = (
    "Score (%)", "Score_A (%)", "Score_B (%)", "Forgetting (%)", "Gap to two models (%)", "Agreement (%)",
    "Parameters", "FLOPs",
)  # fmt: skip


def table_markdown(comparison: Comparison) -> str:
    """The table of the founding text, with intervals, as Markdown; the best arrangement in bold."""
    rows = summarize(comparison)
    winner = best(rows)
    lines = [
        "| Arrangement | " + " | ".join(HEAD) + " |",
        "|---|" + "---:|" * len(HEAD),
    ]
    for i, row in enumerate(rows):
        mark = "**" if i == winner else ""
        content = (_inert(row.label), *cells(row))
        lines.append("| " + " | ".join(f"{mark}{cell}{mark}" for cell in content) + " |")
    return "\n".join([*lines, "", *remarks(comparison, rows)]) + "\n"


def _inert(label: str) -> str:
    """A label that can neither end its cell nor be read as markup."""
    safe = " ".join(label.split()).replace("&", "&amp;").replace("<", "&lt;").replace("\\", "\\\\")
    return safe.replace("|", "\\|").replace("*", "\\*").replace("`", "\\`").replace("[", "\\[")
