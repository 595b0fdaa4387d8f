"""The report of one run: what became of the old tasks, how well the new one was learnt, at what cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from taskgraft.report import formatting, history, summary
from taskgraft.report.evidence import Evidence, disagreements, gather
from taskgraft.report.formatting import measured, moved, percent, typeset
from taskgraft.report.galleries import Picture, no_picture
from taskgraft.report.page import (
    Bar,
    Block,
    Board,
    Card,
    Mark,
    Page,
    Section,
    Table,
    Text,
    chart_plot,
    render,
)
from taskgraft.report.run_evidence import answers_section, changes_section, reliability_section
from taskgraft.report.run_origin import data_section, lineage_section, repeat_section, settings_section
from taskgraft.report.verdict import Verdict, guessing, judge, loss
from taskgraft.results.predictions import Predictions
from taskgraft.results.record import Interval, Record, TaskResult

ANSWERS = {
    "good": "Yes",
    "mixed": "Partly",
    "poor": "No",
    "unknown": "New task learnt; old accuracy unknown",
}
DETAILED = 6  # old tasks with plots, tables and images of their own: a page of a hundred would open in no browser
SHOWN = 4  # old tasks on the first screen: those that lost most


def render_run(record: Record, predictions: dict[str, Predictions], picture: Picture = no_picture) -> str:
    """The HTML report of one run, in one offline file.

    `predictions`: "new" and "new-parent" are the child and the parent on the new task's validation images,
    "old" and "old-parent" on those of the old tasks, where there are any. `image` gives the images that are
    shown beside confusions and changed answers.
    """
    detailed = _detailed(record)
    found = [gather(task, predictions) for task in detailed]
    evidence = [one for one in found if one is not None]
    verdict = judge(record)
    sections = (
        _tasks_section(record),
        _curves_section(record),
        answers_section([task.name for task in detailed], evidence, picture),
        changes_section(detailed, evidence, _differing(detailed, evidence, predictions), picture),
        reliability_section(evidence),
        lineage_section(record),
        settings_section(record),
        data_section(record),
        repeat_section(record),
    )
    names = [task.name for task in summary.old_tasks(record)]
    new, old = history.new_name(record), names[0] if len(names) == 1 else f"{len(names)} old tasks"
    page = Page(
        f"Learning {new}, keeping {old}" if names else f"Learning {new}",
        "taskgraft · report of one run",
        _lead(record),
        _cards(record, verdict),
        tuple(section for section in sections if section.blocks),
        f"Method {record.method}, seed {record.seed}. This page needs no network.",
        _board(record),
    )
    return render(page)


def _detailed(record: Record) -> list[TaskResult]:
    """The tasks whose single images are looked at: with very many, the new ones and those that lost most."""
    old = sorted(summary.old_tasks(record), key=loss, reverse=True)[:DETAILED]
    return [task for task in record.tasks if task.new or task in old]


def _sentence(text: str) -> str:
    return typeset(text[:1].upper() + text[1:] + ".")


def _noted(note: str) -> str:
    """A note as a sentence."""
    return f"{note[:1].upper()}{note[1:]}{'' if note.endswith(('.', '!', '?')) else '.'}"


def _lead(record: Record) -> str:
    """What was done, with what: the numbers stand below."""
    new = summary.new_tasks(record)
    pictures = _pictures(record)
    shown = f" from {formatting.several(pictures, 'picture')}" if pictures else ""
    tasks = ", ".join(f"{task.name} ({_classes(task)})" for task in new)
    what = str(record.parent.get("architecture", "classifier"))
    step = f"step {formatting.count(record.step)} was kept"
    if not summary.old_tasks(record):
        return f"{what} was trained on {tasks}{shown}; {step}."
    return f"{what} learnt {tasks}{shown} by {record.method}; {step}."


def _pictures(record: Record) -> int:
    """How many images the new task was learnt from; 0 where the record does not say."""
    part: Any = record.data.get("new", {})
    images: Any = part.get("images", {}) if isinstance(part, Mapping) else {}
    return int(images.get("train", 0)) if isinstance(images, Mapping) else 0


def _classes(task: TaskResult) -> str:
    return f"{formatting.count(len(task.classes))} class{'' if len(task.classes) == 1 else 'es'}"


def _board(record: Record) -> Board:
    old = sorted(summary.old_tasks(record), key=loss, reverse=True)
    rows = [_bar(task) for task in (*old[:SHOWN], *summary.new_tasks(record))]
    notes = ["Scale from 0 to 100 % of the validation images, with 95 % intervals"]
    if any(row.was for row in rows):
        notes.append("hollow before, full now")
    if len(old) > SHOWN:
        rest = formatting.several(len(old) - SHOWN, "more old task")
        notes.append(f"{rest} lost less or could not be measured: in the table below")
    score = "" if record.score is None else f" Score {percent(record.score)}: the mean of all tasks."
    return Board("How good is it?", tuple(rows), f"{'; '.join(notes)}.{score}")


def _bar(task: TaskResult) -> Bar:
    """A task's shares, and what became of it in words."""
    images = f", {formatting.several(task.child.n, 'image')}" if task.child else ""
    detail = f"{'new, ' if task.new else ''}{_classes(task)}{images}"
    if task.new:
        alone = "" if task.separate is None else f"; a model for it alone reaches {percent(task.separate)} %"
        change = f"95 % interval {formatting.span(task.child)}{alone}" if task.child else "not measured"
    elif task.identical and task.forgetting is not None:
        change = "every answer is the parent's, bit for bit"
    elif task.forgetting is not None:
        change = f"change {moved(task.forgetting)} points"
    elif task.agreement is not None:
        change = f"agreement with the parent {measured(task.agreement)} %, a proxy"
    else:
        change = "not measured"
    return Bar(task.name, detail, _mark(task.parent), _mark(task.child), typeset(change))


def _mark(share: Interval | None) -> Mark | None:
    if share is None:
        return None
    at, low, high = (round(100 * value, 2) for value in (share.mean, share.low, share.high))
    return Mark(f"{percent(share.mean)} %", at, low, high)


def _cards(record: Record, verdict: Verdict) -> tuple[Card, ...]:
    why = verdict.why.removeprefix("next, ")
    failed = any(guessing(task) for task in summary.new_tasks(record))
    worked = (_sentence(verdict.judgement), *(() if failed else (_sentence(verdict.gap),)))
    return (
        Card("Did it work?", ANSWERS[verdict.status], worked, tone=verdict.status),
        Card("What did it cost?", formatting.duration(summary.seconds(record)), _cost_lines(record)),
        Card("What next?", _sentence(why), (), verdict.command),
    )


def _cost_lines(record: Record) -> tuple[str, ...]:
    more = summary.added(record)
    lines = []
    if more is not None:
        whole = record.parameters.get("parent")
        share = f", {formatting.part(more, whole)} of the parent's" if whole else ""
        lines.append(
            f"{formatting.several(more, 'parameter')}{' added' if whole else ''}{share}{summary.slower(record)}."
        )
    passes = [f"{1000 * record.latency[key]:.1f} ms" for key in ("parent", "child") if key in record.latency]
    if passes:
        lines.append(f"One image alone takes {' → '.join(passes)} where it was trained.")
    return tuple(lines)


def _tasks_section(record: Record) -> Section:
    head = (
        "Task",
        "Classes",
        "Images",
        "Parent (%)",
        "Child (%)",
        "Change (points)",
        "Agreement (%)",
        "Trained alone (%)",
    )
    table = Table(
        "Accuracy on validation images, with 95 % intervals (bootstrap over images, paired for the change)",
        head,
        tuple(_task_row(task) for task in record.tasks),
    )
    return Section("tasks", "Tasks before and after", (table, *_remarks(record)))


def _task_row(task: TaskResult) -> tuple[str, ...]:
    images = task.child or task.parent
    return (
        f"{task.name} (new)" if task.new else task.name,
        str(len(task.classes)),
        formatting.count(images.n) if images else formatting.NOTHING,
        measured(task.parent),
        measured(task.child),
        typeset(moved(task.forgetting)),
        measured(task.agreement),
        percent(task.separate),
    )


def _remarks(record: Record) -> tuple[Block, ...]:
    blind = [task.name for task in summary.old_tasks(record) if task.child is None]
    lines: list[Block] = []
    if record.score is not None:
        text = f"Score {percent(record.score)} at step {record.step}: the peak over the evaluated steps of the "
        lines.append(Text(text + "tasks' mean validation accuracy. The weights of that step were kept."))
    if blind:
        lines.append(
            Text(
                f"Old accuracy is unknown for {', '.join(blind)}: no old validation images were given, so "
                "there is no Score. Agreement is the share of the new task's validation images on which "
                "child and parent give the same answer for the old task. It is a proxy: images of the new "
                "task may not look like those of the old one. Give old images with --old-val DIR.",
                "warning",
            )
        )
    elif any(task.agreement is not None for task in record.tasks):
        text = "Agreement: the share of the new task's validation images on which child and parent give the "
        lines.append(Text(text + "same answer for the old task.", "note"))
    if summary.old_tasks(record) and summary.separate_of(record) is None:
        text = "No model was trained for the new task alone, so the gap to two separate models is unknown."
        lines.append(Text(text, "note"))
    if len(summary.old_tasks(record)) > DETAILED:
        lines.append(Text(f"Below, single images are shown of the new task and the {DETAILED} that lost most.", "note"))
    return (*lines, *(Text(_noted(note), "note") for note in record.notes))


def _curves_section(record: Record) -> Section:
    accuracy = history.accuracy_chart(record)
    loss = history.loss_chart("loss", "Loss terms over steps", [record])
    if loss is not None:
        loss = loss._replace(caption=f"{history.TERMS} {loss.caption}".strip())
    found = [chart_plot(chart) for chart in (accuracy, loss) if chart is not None]
    return Section("curves", "Over the steps", tuple(found))


def _differing(
    tasks: Sequence[TaskResult], evidence: list[Evidence], predictions: Mapping[str, Predictions]
) -> list[tuple[str, tuple]]:
    known = {one.task for one in evidence}
    names = [task.name for task in tasks if not task.new and task.name not in known]
    return [(name, disagreements(name, predictions)) for name in names]
