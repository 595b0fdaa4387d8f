"""The page of one run: what it reached, where it is wrong, what it cost, how to reproduce it; and its model card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

from taskgraft.report import commands, error_analysis, figures, summary
from taskgraft.report.error_analysis import ErrorAnalysis, Flip
from taskgraft.report.evaluation_page import FlipList, build_calibration, build_flips, build_task_errors, image_quota
from taskgraft.report.formatting import (
    MISSING,
    escape_markdown,
    flatten,
    format_change,
    format_count,
    format_duration,
    format_estimate,
    format_fraction,
    format_percent,
    format_range,
    format_value,
    pluralize,
    use_minus_signs,
)
from taskgraft.report.page import (
    Table,
    build_line_figure,
    build_long_table,
    build_pairs_table,
    render,
)
from taskgraft.report.summary import is_at_chance, loss_of, new_name, new_tasks, old_name, old_tasks
from taskgraft.report.thumbnails import GetThumbnail, no_thumbnail
from taskgraft.results.predictions import Predictions
from taskgraft.results.record import Interval, Record, TaskResult

MAX_DETAILED = 6  # old tasks with figures and images of their own; no browser would open a page of a hundred
MAX_BARS = 4  # old tasks on the first screen


class Point(NamedTuple):
    """An accuracy as text and, in percent, as a position on a scale with its interval."""

    text: str
    mean: float
    low: float
    high: float


class TaskBar(NamedTuple):
    """A task on the first screen, before and after; None where nothing was measured."""

    name: str
    detail: str
    parent: Point | None
    child: Point | None
    change: str


class TaskFlips(NamedTuple):
    """A task's flips: numbers in both directions and their images; unlabeled ones only differ."""

    task: str
    counts: tuple[int, int]
    negative: FlipList | None
    positive: FlipList | None


class Disagreement(NamedTuple):
    """How many of the new images child and parent classify differently, on an old task without labels for them."""

    task: str
    images: int
    changed: FlipList | None


class Ancestor(NamedTuple):
    """A step of the lineage: a title and lines about it."""

    title: str
    lines: tuple[str, ...]


def render_run(
    record: Record, predictions: Mapping[str, Predictions], get_thumbnail: GetThumbnail = no_thumbnail
) -> str:
    """Render the report of one run.

    Args:
        record: The run.
        predictions: "new" and "new-parent" are the child's and the parent's on the new task's validation images,
            "old" and "old-parent" on those of the old tasks; each may be missing.
        get_thumbnail: Returns images of the sets "new" and "old", shown with confusions and flips.

    Returns:
        One offline HTML page.
    """
    worst = sorted(old_tasks(record), key=loss_of, reverse=True)
    detailed = [task for task in record.tasks if task.new or task in worst[:MAX_DETAILED]]
    quota = image_quota(len(detailed))
    analyses = [one for task in detailed if (one := error_analysis.analyze_errors(task, predictions)) is not None]
    analyzed = {analysis.task for analysis in analyses}
    old_names = {task.name for task in old_tasks(record)}
    context = {
        "record": record,
        "summary": summary.summarize_run(record),
        "old": old_name(record) if old_names else "",
        "new": new_name(record),
        "new_details": ", ".join(f"{one.name} ({pluralize(len(one.classes), 'class')})" for one in new_tasks(record)),
        "train_images": _count_train_images(record),
        "not_learned": any(map(is_at_chance, new_tasks(record))),
        "unmeasured": [task.name for task in old_tasks(record) if task.child is None],
        "agreement": any(task.agreement is not None for task in record.tasks),
        "has_baseline": summary.single_task_accuracy(record) is not None,
        "bars": [_build_bar(task) for task in (*worst[:MAX_BARS], *new_tasks(record))],
        "more_bars": len(worst) - MAX_BARS,
        "max_detailed": MAX_DETAILED if len(worst) > MAX_DETAILED else 0,
        "seconds": summary.total_seconds(record),
        "cost": _list_costs(record),
        "tasks": _build_task_table(record),
        "curves": [
            build_line_figure(figures.build_accuracy_chart(record)),
            build_line_figure(figures.build_loss_chart(
                "loss", "Loss terms", [record], "Every term of the objective, multiplied by its strength."
            )),
        ],
        "errors": [build_task_errors(i, one, get_thumbnail, quota) for i, one in enumerate(analyses)],
        "without_labels": [task.name for task in detailed if task.name not in analyzed] if analyses else [],
        "flips_by_task": [_build_flips(one, get_thumbnail, quota) for one in analyses if one.task in old_names],
        "disagreements": [
            _build_disagreement(name, error_analysis.find_disagreements(name, predictions), get_thumbnail, quota)
            for name in (task.name for task in detailed)
            if name in old_names - analyzed
        ],
        "calibration": build_calibration(analyses),
        "lineage": _build_lineage(record),
        "settings": _build_settings(record),
        "default_settings": build_pairs_table(
            "Settings with their defaults", ("Setting", "Default"),
            [(name, value) for name, value, reason in record.settings if reason == "default"],
        ),
        "data": _build_data_tables(record),
        "data_lists": _build_data_lists(record),
        "follow_ups": commands.list_follow_ups(record),
        "measurements": _build_measurements(record),
    }  # fmt: skip
    return render("run.html.j2", context)


def _count_train_images(record: Record) -> int:
    """0 where the record does not say."""
    part = record.data.get("new", {})
    images = part.get("images", {}) if isinstance(part, Mapping) else {}
    return int(images.get("train", 0)) if isinstance(images, Mapping) else 0


def _build_bar(task: TaskResult) -> TaskBar:
    images = f", {pluralize(task.child.n, 'image')}" if task.child else ""
    detail = f"{'new, ' if task.new else ''}{pluralize(len(task.classes), 'class')}{images}"
    change = "not measured"
    if task.new and task.child:
        alone = "" if task.separate is None else f"; a single-task model reaches {format_percent(task.separate)} %"
        change = f"95 % CI {format_range(task.child)}{alone}"
    elif task.identical and task.forgetting is not None:
        change = "predictions bit-identical to the parent's"
    elif task.forgetting is not None:
        change = f"change {format_change(task.forgetting)} points"
    elif task.agreement is not None:
        change = f"agreement with the parent {format_estimate(task.agreement)} %, a proxy"
    return TaskBar(task.name, detail, _build_point(task.parent), _build_point(task.child), use_minus_signs(change))


def _build_point(accuracy: Interval | None) -> Point | None:
    if accuracy is None:
        return None
    mean, low, high = (round(100 * value, 2) for value in (accuracy.mean, accuracy.low, accuracy.high))
    return Point(f"{format_percent(accuracy.mean)} %", mean, low, high)


def _list_costs(record: Record) -> list[str]:
    lines = []
    added, parent = summary.added_parameters(record), record.parameters.get("parent")
    if added is not None:
        extra = f" added, {format_fraction(added, parent)} of the parent's" if parent else ""
        lines.append(f"{pluralize(added, 'parameter')}{extra}")
    lines += [text] if (text := summary.describe_flops(record)) else []
    times = [f"{1000 * record.latency[key]:.1f} ms" for key in ("parent", "child") if key in record.latency]
    lines += [f"batch-1 latency on the training machine: {' → '.join(times)}"] if times else []
    return lines


def _build_task_table(record: Record) -> Table:
    rows = []
    for task in record.tasks:
        images = task.child or task.parent
        rows.append((
            f"{task.name} (new)" if task.new else task.name, str(len(task.classes)),
            format_count(images.n) if images else MISSING, format_estimate(task.parent), format_estimate(task.child),
            use_minus_signs(format_change(task.forgetting)), format_estimate(task.agreement),
            format_percent(task.separate),
        ))  # fmt: skip
    head = (
        "Task",
        "Classes",
        "Images",
        "Parent (%)",
        "Child (%)",
        "Change (points)",
        "Agreement (%)",
        "Single-task (%)",
    )
    caption = "Validation accuracy with 95 % confidence intervals (bootstrap over images, paired for the change)"
    return Table(caption, head, tuple(rows))


def _build_flips(analysis: ErrorAnalysis, get_thumbnail: GetThumbnail, quota: int) -> TaskFlips:
    negative = build_flips(
        f"{analysis.task}: negative flips (right before, wrong now)", analysis.set_name, analysis.negative_flips,
        ("true", "now"), ("Image", "True class and parent's prediction", "Child's prediction"), get_thumbnail, quota,
    )  # fmt: skip
    positive = build_flips(
        f"{analysis.task}: positive flips (wrong before, right now)", analysis.set_name, analysis.positive_flips,
        ("before", "true"), ("Image", "Parent's prediction", "True class and child's prediction"), get_thumbnail, quota,
    )  # fmt: skip
    counts = len(analysis.negative_flips), len(analysis.positive_flips)
    return TaskFlips(analysis.task, counts, negative, positive)


def _build_disagreement(task: str, flips: Sequence[Flip], get_thumbnail: GetThumbnail, quota: int) -> Disagreement:
    changed = build_flips(
        f"{task}: changed predictions on the new images", "new", flips, ("parent", "child"),
        ("Image", "Parent", "Child"), get_thumbnail, quota,
    )  # fmt: skip
    return Disagreement(task, len(flips), changed)


# ---- lineage, settings, data -----------------------------------------------------------------------------------


class Lineage(NamedTuple):
    """Every model from the first to this one, the accuracy of each task after each step, digests of the inputs."""

    steps: tuple[Ancestor, ...]
    accuracies: Table | None
    digests: Table


def _build_lineage(record: Record) -> Lineage:
    before = list(record.parent.get("lineage", ()))
    models: list[Mapping[str, Any]] = [*(dict(entry.get("parent", {})) for entry in before), record.parent]
    final = {task.name: task.child.mean for task in record.tasks if task.child}
    learned = [(str(entry.get("task")), str(entry.get("method")), entry.get("accuracy", {})) for entry in before]
    learned.append((new_name(record), record.method, final))
    tasks = ", ".join(map(str, models[0].get("tasks", ()))) or "no task yet"
    first = f"{models[0].get('architecture', 'a classifier')}: {tasks}"
    steps = [Ancestor(_model_name(models[0]), (first, *_digest_line(models[0])))]
    for (task, method, accuracy), model in zip(learned, [*models[1:], None], strict=True):
        values = ", ".join(f"{name} {format_percent(value)} %" for name, value in accuracy.items())
        line = f"{'trained' if method == 'train' else f'with {method}'}: {values or 'not measured'}"
        if model is None:  # this run: no file can hold its own digest
            steps.append(Ancestor(f"Learned {task} (this run)", (line,)))
        else:
            steps.append(Ancestor(f"Learned {task}", (line, f"saved as {_model_name(model)}", *_digest_line(model))))
    accuracies = None
    if before:
        names = dict.fromkeys(name for _, _, accuracy in learned for name in accuracy)
        rows = tuple((name, *(format_percent(step.get(name)) for _, _, step in learned)) for name in names)
        head = ("Task", *(f"after {task}" for task, _, _ in learned))
        accuracies = Table("Accuracy (%) of each task after each step, where it was measured", head, rows)
    return Lineage(tuple(steps), accuracies, _build_digests(record))


def _model_name(model: Mapping[str, Any]) -> str:
    source = str(model.get("source", "unknown"))
    return PurePath(source).name or source


def _digest_line(model: Mapping[str, Any]) -> tuple[str, ...]:
    return (f"SHA-256 {format_value(model['digest'])}",) if model.get("digest") else ()


def _build_digests(record: Record) -> Table:
    parent = record.parent
    digests = {"parent": parent.get("digest")}
    digests |= {f"parent / {name}": digest for name, digest in dict(parent.get("files", {})).items()}
    digests |= {"labels of the parent": parent.get("labels")}
    parts = [(name, part) for name, part in record.data.items() if isinstance(part, Mapping)]
    digests |= {f"images / {name}": part.get("fingerprint") for name, part in parts}
    rows = tuple((name, str(digest)) for name, digest in digests.items() if digest)
    return Table("SHA-256 of all inputs of this run", ("Input", "SHA-256"), rows, (0, 1), (1,))


def _build_settings(record: Record) -> list[Table]:
    """Settings that were chosen, each with the reason; defaults have a table of their own."""
    named = {name for name, _, _ in record.settings}
    chosen = [setting for setting in record.settings if setting[2] != "default"]
    if "method" not in named:
        chosen.insert(0, ("method", record.method, ""))
    other = [(name, text) for name, text in flatten(record.config) if name not in named]
    return [
        Table("Chosen settings", ("Setting", "Value", "Reason"), tuple(chosen), (0, 1, 2), (1,)),
        build_pairs_table("Other settings", ("Setting", "Value"), other),
    ]


def _build_data_tables(record: Record) -> list[Table]:
    tables, rest = [], {}
    for name, part in record.data.items():
        if isinstance(part, Mapping):
            hidden = ("counts", "excluded", "notes")  # shown elsewhere
            shown = {key.replace("_", " "): value for key, value in part.items() if key not in hidden}
            tables.append(build_pairs_table(f"Data: {name}", ("Property", "Value"), flatten(shown)))
        else:
            rest[name] = part
    parent = {name: value for name, value in record.parent.items() if name not in ("lineage", "files")}
    tables.append(build_pairs_table("Data", ("Property", "Value"), flatten(rest)))
    tables.append(build_pairs_table("Parent", ("Property", "Value"), flatten(parent)))
    return tables


def _build_data_lists(record: Record) -> list[Table]:
    """Images of each class, and excluded images with their reasons: long, so closed at first."""
    tables = []
    for name, part in record.data.items():
        if not isinstance(part, Mapping):
            continue
        counts = [(str(label), format_value(count)) for label, count in dict(part.get("counts") or {}).items()]
        tables.append(Table(f"{name}: images of each class", ("Class", "Images"), tuple(counts)))
        excluded = [(str(file), str(reason)) for file, reason in part.get("excluded") or ()]
        total = int(part.get("excluded_count", len(excluded)))
        caption = f"{name}: {pluralize(total, 'excluded image')}"
        tables.append(build_long_table(caption, ("Image", "Reason"), excluded, total))
    return tables


def _build_measurements(record: Record) -> list[Table]:
    counts = [(name, format_count(value)) for name, value in record.parameters.items()]
    times = [(name, format_duration(value)) for name, value in record.seconds.items()]
    latency = [(name, f"{1000 * value:.1f} ms") for name, value in record.latency.items()]
    return [
        build_pairs_table("Parameters", ("Model", "Parameters"), counts),
        build_pairs_table("Time", ("Part", "Time"), times),
        build_pairs_table("Batch-1 latency on the training machine", ("Model", "Time"), latency),
        build_pairs_table("Versions", ("Package", "Version"), list(record.versions.items())),
    ]


def format_model_card(record: Record) -> str:
    """Format the model card, README.md of a bundle: Markdown with the YAML metadata that model hubs read."""
    loading = (
        "The last layer holds the logits of all tasks; `config.json` lists the rows of each under `taskgraft.tasks`."
        if record.one_backbone
        else "The model is more than a linear layer on one backbone, so timm alone cannot rebuild it. Load it with "
        "`taskgraft.open_parent`."
    )
    rows = []
    for task in record.tasks:
        before = format_estimate(task.parent)
        after = f"{format_estimate(task.child)}, {pluralize(task.child.n, 'image')}" if task.child else "not measured"
        name = escape_markdown(task.name)
        rows.append(f"| {name} | {len(task.classes)} | {before} | {after} | {format_change(task.forgetting)} |")
    return "\n".join((
        "---",
        f"library_name: {'timm' if record.one_backbone else 'taskgraft'}",
        "pipeline_tag: image-classification",
        "tags: [image-classification, timm, taskgraft]",
        "---",
        "",
        f"# {' + '.join(task.name for task in record.tasks)}",
        "",
        f"A {record.parent.get('architecture', 'classifier')} for {pluralize(len(record.tasks), 'task')}, made by "
        f"taskgraft with the method `{record.method}`.",
        "",
        "Validation accuracy in percent, with 95 % confidence intervals:",
        "",
        "| Task | Classes | Parent | This model | Change |",
        "|---|---|---|---|---|",
        *rows,
        "",
        loading,
        "",
        *(f"- {escape_markdown(note)}" for note in record.notes),
        "",
        "Made with:",
        "",
        "```",
        record.command,
        "```",
        "",
        "Settings: " + json.dumps(record.config),
        "",
    ))  # fmt: skip
