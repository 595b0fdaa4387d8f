"""The report of one run: what became of the old tasks, how well the new one was learnt, at what cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from taskgraft.record import Predictions, Record, TaskResult
from taskgraft.report import history, summary, wording
from taskgraft.report.evidence import Evidence, disagreements, gather
from taskgraft.report.page import (
    Block,
    Card,
    Code,
    Fold,
    Page,
    Section,
    Table,
    Text,
    chart_plot,
    pairs,
    render,
)
from taskgraft.report.run_evidence import answers_section, changes_section, reliability_section
from taskgraft.report.verdict import Verdict, guessing, judge, loss
from taskgraft.report.wording import measured, moved, percent, typeset

ANSWERS = {
    "good": "Yes",
    "mixed": "Partly",
    "poor": "No",
    "unknown": "New task learnt; old accuracy unknown",
}


FOLDED = ("counts", "excluded", "notes")  # shown elsewhere
LISTED = 200  # images


def render_run(record: Record, predictions: dict[str, Predictions]) -> str:
    """The HTML report of one run, in one offline file.

    `predictions`: "new" and "new-parent" are the child and the parent on the new task's validation images,
    "old" and "old-parent" on those of the old tasks, where there are any.
    """
    found = [gather(task, predictions) for task in record.tasks]
    evidence = [one for one in found if one is not None]
    verdict = judge(record)
    sections = (
        _tasks_section(record),
        _curves_section(record),
        answers_section(record, evidence),
        changes_section(record, evidence, _differing(record, evidence, predictions)),
        reliability_section(evidence),
        _settings_section(record),
        _data_section(record),
        _repeat_section(record),
    )
    names = [task.name for task in summary.old_tasks(record)]
    new, old = history.new_name(record), names[0] if len(names) == 1 else f"{len(names)} old tasks"
    page = Page(
        f"Learning {new}, keeping {old}" if names else f"Learning {new}",
        "taskgraft · report of one run",
        f"{typeset(verdict.result)}.",
        _cards(record, verdict),
        tuple(section for section in sections if section.blocks),
        f"Method {record.method}, seed {record.seed}. This page needs no network.",
    )
    return render(page)


def _sentence(text: str) -> str:
    return typeset(text[:1].upper() + text[1:] + ".")


def _cards(record: Record, verdict: Verdict) -> tuple[Card, ...]:
    why = verdict.why.removeprefix("next, ")
    failed = any(guessing(task) for task in summary.new_tasks(record))
    worked = (_sentence(verdict.judgement), *(() if failed else (_sentence(verdict.gap),)))
    return (
        Card("Did it work?", ANSWERS[verdict.status], worked, tone=verdict.status),
        Card("What did it cost?", wording.duration(summary.seconds(record)), _cost_lines(record)),
        Card("What next?", _sentence(why), (), verdict.command),
    )


def _cost_lines(record: Record) -> tuple[str, ...]:
    more = summary.added(record)
    lines = []
    if more is not None:
        whole = record.parameters.get("parent")
        share = f", {wording.part(more, whole)} of the parent's" if whole else ""
        lines.append(f"{wording.several(more, 'parameter')}{' added' if whole else ''}{share}{summary.slower(record)}.")
    known = [task for task in summary.old_tasks(record) if task.forgetting is not None]
    losses = sorted(known, key=loss, reverse=True)
    lines += [_loss_line(task) for task in losses[:3]]
    if not losses and summary.old_tasks(record):
        lines.append("What the old tasks lost could not be measured.")
    return tuple(lines)


def _loss_line(task: TaskResult) -> str:
    return typeset(f"{task.name}: {moved(task.forgetting)} points of accuracy.")


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
        wording.count(images.n) if images else wording.NOTHING,
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
    return (*lines, *(Text(note, "note") for note in record.notes))


def _curves_section(record: Record) -> Section:
    accuracy = history.accuracy_chart(record)
    loss = history.loss_chart("loss", "Loss terms over steps", [record])
    if loss is not None:
        loss = loss._replace(caption=f"{history.TERMS} {loss.caption}".strip())
    found = [chart_plot(chart) for chart in (accuracy, loss) if chart is not None]
    return Section("curves", "Over the steps", tuple(found))


def _differing(
    record: Record, evidence: list[Evidence], predictions: Mapping[str, Predictions]
) -> list[tuple[str, tuple]]:
    known = {one.task for one in evidence}
    names = [task.name for task in summary.old_tasks(record) if task.name not in known]
    return [(name, disagreements(name, predictions)) for name in names]


def _settings_section(record: Record) -> Section:
    said = {name for name, _, _ in record.choices}
    settings = [("method", record.method), *wording.flat(record.run)]
    rest = [(name, text) for name, text in settings if name not in said]
    reasons = Table("Settings and why", ("Setting", "Value", "Reason"), record.choices, (0, 1, 2), code=(1,))
    return Section(
        "settings",
        "Settings",
        (
            *((reasons,) if record.choices else ()),
            *pairs("Other settings", ("Setting", "Value"), rest),
        ),
    )


def _data_section(record: Record) -> Section:
    blocks: list[Block] = []
    folds: list[Block] = []
    for name, part in record.data.items():
        if isinstance(part, Mapping):
            shown = {key.replace("_", " "): value for key, value in part.items() if key not in FOLDED}
            rows = wording.flat(shown)
            blocks += pairs(f"Data: {name}", ("What", "Value"), rows)
            folds += _folds(name, part)
    rest = {name: part for name, part in record.data.items() if not isinstance(part, Mapping)}
    blocks += pairs("Data", ("What", "Value"), wording.flat(rest))
    blocks += pairs("Parent", ("What", "Value"), wording.flat(record.parent))
    return Section("data", "Data and parent", (*blocks, *folds))


def _folds(name: str, part: Mapping[str, Any]) -> list[Block]:
    """Images of each class, and what was left out and why: too long to stand open."""
    found: list[Block] = []
    counts = part.get("counts")
    if isinstance(counts, Mapping) and counts:
        rows = tuple((str(label), wording.value_text(number)) for label, number in counts.items())
        table = Table(f"{name}: images of each class", ("Class", "Images"), rows)
        found.append(Fold(f"{name}: images of each class", table))
    excluded = part.get("excluded")
    if isinstance(excluded, list | tuple) and excluded:
        total = int(part.get("excluded_count", len(excluded)))
        caption = f"{name}: {wording.several(total, 'excluded image')}"
        rows = tuple(_excluded(one) for one in excluded[:LISTED])
        shown = f" (the first {LISTED})" if len(rows) < total else ""
        found.append(Fold(caption, Table(caption + shown, ("Image", "Reason"), rows, (0, 1))))
    return found


def _excluded(one: object) -> tuple[str, str]:
    if isinstance(one, list | tuple) and len(one) == 2:
        return str(one[0]), str(one[1])
    if isinstance(one, Mapping) and len(one) == 2:
        name, reason = one.values()
        return str(name), str(reason)
    return wording.value_text(one), ""


def _repeat_section(record: Record) -> Section:
    numbers = [(name, wording.count(value)) for name, value in record.parameters.items()]
    times = [(name, wording.duration(value)) for name, value in record.seconds.items()]
    return Section(
        "repeat",
        "To repeat this run",
        (
            Code(f"Seed {record.seed}:", record.command),
            *pairs("Parameters", ("Part", "Parameters"), numbers),
            *pairs("Time", ("Part", "Time"), times),
            *pairs("Versions", ("What", "Version"), list(record.versions.items())),
        ),
    )
