"""Did it work, what did it cost, what next: five plain lines for the terminal, and the same for a page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from taskgraft.methods.presets import is_baseline
from taskgraft.report import commands, formatting, summary
from taskgraft.report.formatting import percent, signed
from taskgraft.results.record import Comparison, Record, TaskResult

Status = Literal["good", "mixed", "poor", "unknown"]

SMALL = 0.02  # a loss that most users accept; beyond LARGE the method should be another
LARGE = 0.10
SHOWN = 3  # tasks named in a line; sequences over years have many


class Verdict(NamedTuple):
    """Five lines, the status, and the next command by itself."""

    status: Status
    result: str
    judgement: str
    cost: str
    gap: str
    why: str
    command: str

    def lines(self) -> list[str]:
        """The five lines."""
        return [self.result, self.judgement, self.cost, self.gap, f"{self.why}: {self.command}"]


def verdict_run(record: Record) -> list[str]:
    """Five plain lines on one run: result, judgement, cost, gap to two models, next command."""
    return [_line(text) for text in judge(record).lines()]


def verdict_comparison(comparison: Comparison) -> list[str]:
    """Five plain lines on a comparison: the best, the baseline, gap to two models, cost, next command."""
    return [_line(text) for text in judge_comparison(comparison).lines()]


def judge(record: Record) -> Verdict:
    """The verdict on one run."""
    status = _status(record)
    why, command = _next(record, status)
    return Verdict(status, _result(record), _judgement(record), _cost(record), _gap(record), why, command)


def _status(record: Record) -> Status:
    old, new = summary.old_tasks(record), summary.new_tasks(record)
    if any(guessing(task) for task in new):
        return "poor"
    losses = [task.forgetting for task in old if task.forgetting is not None]
    if len(losses) < len(old):
        return "unknown"
    if any(loss.mean > LARGE for loss in losses):
        return "poor"
    return "mixed" if any(loss.mean > SMALL and loss.low > 0 for loss in losses) else "good"


def guessing(task: TaskResult) -> bool:
    """Whether a task's accuracy is not told from guessing one of its classes."""
    return task.child is not None and task.child.low <= 1 / len(task.classes)


def _result(record: Record) -> str:
    known = [task for task in summary.old_tasks(record) if task.child is not None]
    unknown = [task for task in summary.old_tasks(record) if task.child is None]
    parts = [_old_part(task) for task in sorted(known, key=loss, reverse=True)[:SHOWN]]
    if len(known) > SHOWN:
        parts.append(f"{formatting.several(len(known) - SHOWN, 'more old task')} lost less")
    parts += [f"{task.name} {percent(summary.accuracy(task, record))}" for task in summary.new_tasks(record)]
    if unknown:
        names = ", ".join(task.name for task in unknown[:SHOWN])
        rest = f" and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else ""
        parts.append(f"accuracy on {names}{rest} unknown (no old validation images)")
    known_score = record.score is not None
    ending = f"Score {percent(record.score)} at step {record.step}" if known_score else "no Score"
    return "; ".join([*parts, ending])


def _old_part(task: TaskResult) -> str:
    after = percent(task.child.mean if task.child else None)
    if task.parent is None or task.forgetting is None:
        return f"{task.name} {after}"
    delta = formatting.change(task.forgetting)
    return (
        f"{task.name} {percent(task.parent.mean)} → {after} ({signed(delta.mean)}, "
        f"95 % interval {signed(delta.low)} to {signed(delta.high)})"
    )


def loss(task: TaskResult) -> float:
    """What a task lost; 0 where that is unknown."""
    return task.forgetting.mean if task.forgetting else 0.0


def _judgement(record: Record) -> str:
    failed = [task.name for task in summary.new_tasks(record) if guessing(task)]
    if failed:
        return f"not learnt: {', '.join(failed)}, whose accuracy is not told from guessing"
    if not summary.old_tasks(record):
        learned = "; ".join(f"{task.name} {formatting.measured(task.child)}" for task in record.tasks)
        return f"learnt, with its 95 % interval: {learned}"
    blind = [task for task in summary.old_tasks(record) if task.forgetting is None]
    if blind:
        return _blind(blind)
    worst = max(summary.old_tasks(record), key=loss, default=None)
    if worst is None or worst.forgetting is None:
        return "what the old tasks lost was not measured"
    lost = worst.forgetting
    if all(task.identical for task in summary.old_tasks(record)):
        return f"nothing forgotten: old answers are the parent's, bit for bit ({formatting.several(lost.n, 'image')})"
    if lost.low > 0:
        return f"forgetting on {worst.name}: {percent(lost.mean)} points, more than chance explains"
    if lost.high < 0:
        return f"nothing forgotten: {worst.name} gained {percent(-lost.mean)} points"
    return (
        f"no loss told from chance on {worst.name}; losses above {percent(lost.high)} points are "
        f"ruled out ({formatting.several(lost.n, 'image')})"
    )


def _blind(tasks: list[TaskResult]) -> str:
    start = "old accuracy is unknown without old validation images (--old-val DIR measures it)"
    if all(task.identical for task in tasks):
        return f"{start}; old answers are the parent's, bit for bit, on the new images"
    known = [(task.name, task.agreement) for task in tasks if task.agreement is not None]
    if not known:
        return f"{start}; agreement with the parent was not measured either"
    name, worst = min(known, key=lambda pair: pair[1].mean)
    return f"{start}; agreement with the parent on {name} {percent(worst.mean)} is only a proxy"


def _cost(record: Record) -> str:
    spent = f"cost: {formatting.duration(summary.seconds(record))}"
    more = summary.added(record)
    if more is None:
        return spent
    whole = record.parameters.get("parent")
    if whole == 0:
        return f"{spent}, {formatting.several(more, 'parameter')}"
    share = f" ({formatting.part(more, whole)} of the parent's)" if whole else ""
    return f"{spent}, {formatting.several(more, 'parameter')} added{share}{summary.slower(record)}"


def _gap(record: Record) -> str:
    alone = summary.separate_of(record)
    if not summary.old_tasks(record):
        return "the first task of this model: there was nothing to forget"
    if alone is None:
        return "gap to two separate models unknown: none was trained for the new task alone"
    names = ", ".join(task.name for task in summary.new_tasks(record))
    distance = summary.gap(record, alone)
    own = [summary.accuracy(task, record) for task in summary.new_tasks(record)]
    beside = f", this one {percent(own[0])}" if len(own) == 1 else ""
    single = f"a model trained for {names} alone reaches {percent(alone)}{beside}"
    return single if distance is None else f"{single}; {_beside(distance)}"


def _beside(distance: float) -> str:
    if percent(distance) == "0.0":
        return "one model does as well as two separate models"
    side = "below" if distance > 0 else "above"
    return f"one model is {percent(abs(distance))} points {side} two separate models"


def _next(record: Record, status: Status) -> tuple[str, str]:
    if status == "unknown":
        return "next, measure the old tasks", commands.measured(record)
    if not summary.old_tasks(record):
        return "next, teach it another task", commands.extended(record)
    if status == "good":
        return "next, use it", commands.used(record)
    added = any(task.added_to for task in summary.new_tasks(record))  # to an old task: `compare` knows new ones alone
    return "next, try another method" if added else "next, compare methods", commands.compared(record)


def judge_comparison(comparison: Comparison) -> Verdict:
    """The verdict on a comparison."""
    rows = summary.summarize(comparison)
    winner = summary.best(rows)
    if winner is None:
        return _nothing(comparison, rows)
    top = rows[winner]
    status: Status = "unknown" if top.score is None else "good"
    few = any(row.seeds < summary.SEEDS_NEEDED for row in rows if row.seeds)
    follow = _follow(comparison, winner, top, few)
    cost = _spent(comparison, rows, top)
    beside = _baseline(comparison, rows, winner)
    return Verdict("mixed" if few else status, _best(top), beside, cost, _two(top), *follow)


def _follow(comparison: Comparison, winner: int, top: summary.Row, few: bool) -> tuple[str, str]:
    if few:
        return "three seeds are needed to compare; next", commands.more_seeds(comparison)
    if top.score is None:
        return "next, measure the old tasks", commands.compared_with_old(comparison)
    one = comparison.variants[winner]
    if one.folders:
        return "next, use the best", commands.used_from(comparison, one.folders[0])
    return "next, extend with the best", commands.chosen(comparison, one)


def _best(top: summary.Row) -> str:
    seeds = f"over {formatting.several(top.seeds, 'seed')}"
    if top.score is None:
        return (
            f"best by a proxy: {top.label} {seeds}: agreement {_short(top.agreement)}, new task "
            f"{_short(top.new)}; old accuracy is unknown without old validation images (--old-val DIR)"
        )
    return (
        f"best: {top.label}: Score {_short(top.score)} {seeds} (old tasks {_short(top.old)}, "
        f"new task {_short(top.new)})"
    )


def _short(share: summary.Share | None) -> str:
    """A share in a line that says the number of seeds anyway."""
    return summary.text(share).removesuffix(" (1 seed)")


def _baseline(comparison: Comparison, rows: tuple[summary.Row, ...], winner: int) -> str:
    """The best beside plain fine-tuning at its best: under the same settings, where there is such a row."""
    top, runs = rows[winner], [_unseeded(one.config) for one in comparison.variants]
    if top.score is None:
        return "the order rests on agreement, a proxy: measure the old tasks before you trust it"
    others = [i for i, row in enumerate(rows) if is_baseline(row.method) and row.score is not None and i != winner]
    if not others:
        return "no plain fine-tuning with a Score to compare with"
    best = max(others, key=lambda i: (rows[i].rank, runs[i] == runs[winner]))
    base, settings = rows[best], "the same" if runs[best] == runs[winner] else "other"
    return (
        f"plain fine-tuning at its best ({base.label}, under {settings} settings) has Score {_short(base.score)}: "
        f"{signed(base.rank - top.score.mean)} points"
    )


def _unseeded(config: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in config.items() if name != "seed"}


def _two(top: summary.Row) -> str:
    if top.gap is None:
        return "gap to two separate models unknown"
    return f"{_beside(top.gap.mean)} (gap {_short(top.gap)})"


def _spent(comparison: Comparison, rows: tuple[summary.Row, ...], top: summary.Row) -> str:
    runs = sum(row.seeds for row in rows)
    text = f"cost: {formatting.duration(sum(row.seconds for row in rows))}; {formatting.several(runs, 'config')}"
    if top.added is not None:
        text += f"; the best adds {formatting.several(top.added, 'parameter')}"
    failed = len(comparison.failures)
    return f"{text}; {formatting.several(failed, 'failure')}" if failed else text


def _nothing(comparison: Comparison, rows: tuple[summary.Row, ...]) -> Verdict:
    reasons = "; ".join(f"{label}: {reason}" for label, reason in comparison.failures[:SHOWN])
    return Verdict(
        "poor",
        "no arrangement gave a result that can be ranked",
        f"failed: {reasons}" if reasons else "nothing failed, nothing was measured",
        f"cost: {formatting.several(sum(row.seeds for row in rows), 'config')}",
        "gap to two separate models unknown",
        "next, look at the data",
        commands.looked_at(comparison),
    )


def _line(text: str) -> str:
    """One printable line: names may hold line breaks or terminal escapes."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
