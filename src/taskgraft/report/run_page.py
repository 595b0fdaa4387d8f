"""The page of one run: what it reached, where it is wrong, what it cost, how to reproduce it; and its model card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

from taskgraft.report import commands, error_analysis, figures, run_summary
from taskgraft.report import formatting as fmt
from taskgraft.report.error_analysis import ErrorAnalysis, Example
from taskgraft.report.evaluation_page import build_calibration, build_task_errors
from taskgraft.report.page import Table, build_line_figure, build_long_table, build_pairs_table, render
from taskgraft.report.run_summary import (
    PARENT_AND_CHILD,
    Roles,
    is_at_chance,
    is_taught,
    loss_of,
    new_task,
    old_name,
    old_tasks,
)
from taskgraft.report.sample_strip import SampleImage, build_sample_strip
from taskgraft.report.thumbnails import Gallery, GalleryBuilder, GetThumbnail, no_thumbnail
from taskgraft.results.predictions import Predictions
from taskgraft.results.record import Record, TaskResult

MAX_DETAILED = 6  # old tasks with figures and images of their own; no browser would open a page of a hundred
MAX_BARS = 4  # old tasks on the first screen
MAX_SAMPLED = 2  # old tasks whose predictions are shown below the sample images


class Changes(NamedTuple):
    """Images whose prediction changed: how many there are, also in a few words; examples; the full list."""

    gist: str
    text: str
    gallery: Gallery | None
    table: Table


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
    old, new = sorted(old_tasks(record), key=loss_of, reverse=True), new_task(record)
    learned = [new] if new.new else []
    detailed = [task for task in record.tasks if task.new or task in old[:MAX_DETAILED]]
    analyses = {
        task.name: analysis
        for task in detailed
        if not (new.refreshes == task.name and task.child is None)  # the labels are those of the new images
        and (analysis := error_analysis.analyze_errors(task, predictions))
    }
    sampled = [task.refreshes or task.added_to or task.name for task in (*old[:MAX_SAMPLED], new)]
    roles, taught = run_summary.roles(record), is_taught(record)
    samples = build_sample_strip(predictions, list(dict.fromkeys(sampled)), get_thumbnail, roles)
    galleries = GalleryBuilder(get_thumbnail, len(detailed), len(samples))
    changes = []
    for task in detailed:
        if task.new and not taught:
            continue
        if analysis := analyses.get(task.name):
            changes += _build_flips(analysis, galleries, roles)
        else:
            changes.append(_build_disagreement(task, predictions, galleries, roles))
    loss_caption = "Every term of the objective, multiplied by its strength."
    return render(
        "run.html.j2",
        record=record,
        summary=run_summary.summarize_run(record),
        old=old_name(record) if old else "",
        new=new,
        learned=run_summary.learned_name(record),
        taught=taught,
        roles=roles,
        model_before=_model_name(record.parent),
        name_before=_name_before(record),
        partly_measured=any(task.child for task in record.tasks),
        train_images=record.data.get("new", {}).get("images", {}).get("train", 0),
        not_learned=is_at_chance(new),
        unmeasured=[task.name for task in old_tasks(record) if task.child is None],
        bars=[(task, _describe_change(task, roles)) for task in (*old[:MAX_BARS], *learned)],
        more_bars=len(old) - MAX_BARS,
        max_detailed=MAX_DETAILED if len(old) > MAX_DETAILED else 0,
        cost=_list_costs(record),
        samples=samples,
        sample_caption=_describe_samples(samples, roles),
        tasks=_build_task_table(record),
        baselines=_build_baseline_table(record),
        curves=[
            build_line_figure(figures.build_accuracy_chart(record)),
            build_line_figure(figures.build_loss_chart("loss", "Loss terms", [record], loss_caption)),
        ],
        errors=[build_task_errors(i, analysis, galleries, roles) for i, analysis in enumerate(analyses.values())],
        without_labels=[task.name for task in detailed if task.name not in analyses] if analyses else [],
        changes=changes,
        calibration=build_calibration(list(analyses.values()), roles),
        lineage=_list_lineage(record),
        lineage_accuracies=_build_lineage_table(record),
        digests=_build_digests(record),
        settings=_build_settings(record),
        default_settings=build_pairs_table(
            "Settings with their defaults",
            ("Setting", "Default"),
            [(name, value) for name, value, reason in record.settings if reason == "default"],
        ),
        data=_build_data_tables(record),
        data_lists=_build_data_lists(record),
        follow_ups=commands.list_follow_ups(record),
        measurements=_build_measurements(record),
        gists=_summarize_sections(record, list(analyses.values()), changes),
    )


def _name_before(record: Record) -> str:
    """What the page calls the model before, or the two that were merged."""
    return run_summary.roles(record).before + ("s" if "other" in record.parent else "")


def _describe_samples(samples: Sequence[SampleImage], roles: Roles) -> str:
    verdicts = {answer.verdict for image in samples for answer in image.answers}
    marks = " ✓ and ✗ mark right and wrong predictions, where the image has a label." if verdicts - {""} else ""
    before = f" Without a label, the {roles.before}'s prediction is shown if it differs." if "" in verdicts else ""
    return f"Evenly spaced validation images, not selected by their predictions.{marks}{before}"


def _summarize_sections(
    record: Record, analyses: Sequence[ErrorAnalysis], changes: Sequence[Changes]
) -> dict[str, str]:
    """One line for each folded section."""
    wrong = [f"{a.task}: {len(a.errors):,} of {fmt.pluralize(int(a.counts.sum()), 'image')} wrong" for a in analyses]
    errors = [f"{a.task} {fmt.percent(a.ece)} points" for a in analyses]
    chosen = [reason for _, _, reason in record.settings if reason != "default"]
    sets = [
        f"{name} ({fmt.pluralize(sum(images.values()), 'image')})"
        for name, data in record.data.items()
        if (images := data.get("images"))
    ]
    return {
        "errors": "; ".join(wrong),
        "flips": "; ".join(change.gist for change in changes if change.gist),
        "calibration": f"expected calibration error: {', '.join(errors)}",
        "lineage": fmt.pluralize(len(_list_lineage(record)), "step"),
        "settings": f"{len(chosen)} chosen, {fmt.pluralize(len(record.settings) - len(chosen), 'default')}",
        "data": ", ".join([*sets, f"{_name_before(record)} {_model_name(record.parent)}"]),
        "reproduce": "commands, parameters, time, latency, versions",
    }


def _describe_change(task: TaskResult, roles: Roles) -> str:
    if task.new and task.child:
        baseline = "" if task.separate is None else f"; a single-task model reaches {fmt.percent(task.separate)} %"
        balance = run_summary.describe_balance(task)
        return f"95 % CI {fmt.bounds(task.child)}{balance and f'; {balance}'}{baseline}"
    if task.identical and task.forgetting is not None:
        return f"predictions bit-identical to the {roles.before}'s"
    if task.forgetting is not None:
        return fmt.use_minus_signs(f"change {fmt.change(task.forgetting)} points")
    if task.agreement is not None:
        return f"agreement with the {roles.before} {fmt.estimate(task.agreement)} %, a proxy"
    return "not measured"


def _list_costs(record: Record) -> list[str]:
    added, parent = record.parameters["added"], record.parameters["parent"]
    change = "fewer" if added < 0 else "added"
    whose = f"the {run_summary.roles(record).before}'s"
    extra = f" {change} ({fmt.fraction(abs(added), parent)} of {whose})" if parent else ""
    lines = [f"{fmt.pluralize(abs(added), 'parameter')}{extra}"]
    if flops := run_summary.describe_flops(record):
        lines.append(flops)
    if record.latency:
        times = [f"{1000 * record.latency[key]:.1f} ms" for key in ("parent", "child") if key in record.latency]
        lines.append(f"batch-1 latency on the training machine: {' → '.join(times)}")
    return lines


def _build_task_table(record: Record) -> Table:
    rows, top_5 = [], any(task.top_5 is not None for task in record.tasks)
    separate = any(task.separate is not None for task in record.tasks)
    for task in record.tasks:
        images = task.child or task.parent
        rows.append((
            f"{task.name} (new)" if task.new else task.name, str(len(task.classes)),
            f"{images.n:,}" if images else fmt.MISSING, fmt.estimate(task.parent), fmt.estimate(task.child),
            fmt.use_minus_signs(fmt.change(task.forgetting)), fmt.estimate(task.agreement),
            *([fmt.percent(task.separate)] if separate else []), fmt.percent(task.macro_f1),
            *([fmt.percent(task.top_5)] if top_5 else []),
        ))  # fmt: skip
    head = (
        "Task", "Classes", "Images", *(f"{name.capitalize()} (%)" for name in run_summary.roles(record)),
        "Change (points)", "Agreement (%)", *(["Single-task (%)"] if separate else []), "Macro-F1 (%)",
        *(["Top-5 (%)"] if top_5 else []),
    )  # fmt: skip
    caption = "Validation accuracy with 95 % confidence intervals (bootstrap over images, paired for the change)"
    return Table(caption, head, rows)


def _build_baseline_table(record: Record) -> Table | None:
    """What merging the weights alone gives, beside the model that learned from images."""
    if not record.baselines:
        return None
    result = {task.name: task.child or task.agreement for task in record.tasks}
    rows = [
        (name, *(fmt.percent(values.get(task.name)) for task in record.tasks))
        for name, values in record.baselines.items()
    ]
    rows.append(("this model", *(fmt.percent(value and value.mean) for value in result.values())))
    caption = "Merging the weights alone, and this model: accuracy (%), or agreement where no images are labeled"
    return Table(caption, ("Model", *result), rows)


def _build_flips(analysis: ErrorAnalysis, galleries: GalleryBuilder, roles: Roles) -> list[Changes]:
    negative, positive = analysis.negative_flips, analysis.positive_flips
    gist = f"{analysis.task}: {len(negative):,} right before and wrong now, {len(positive):,} the other way round"
    return [
        _build_changes(
            f"{analysis.task}: negative flips (right before, wrong now)", negative, analysis.set_name, ("true", "now"),
            ("Image", f"True class and {roles.before}'s prediction", f"{roles.after.capitalize()}'s prediction"),
            galleries,
            f"{analysis.task}: {fmt.pluralize(len(negative), 'image')} right before and wrong now, "
            f"{fmt.pluralize(len(positive), 'image')} wrong before and right now.", gist,
        ),
        _build_changes(
            f"{analysis.task}: positive flips (wrong before, right now)", positive, analysis.set_name,
            ("before", "true"),
            ("Image", f"{roles.before.capitalize()}'s prediction", f"True class and {roles.after}'s prediction"),
            galleries,
        ),
    ]  # fmt: skip


def _build_disagreement(
    task: TaskResult, predictions: Mapping[str, Predictions], galleries: GalleryBuilder, roles: Roles
) -> Changes:
    examples = error_analysis.find_disagreements(task.name, predictions)
    return _build_changes(
        f"{task.name}: changed predictions on the new images", examples, "new", roles,
        ("Image", *(name.capitalize() for name in roles)), galleries,
        f"{task.name}: the new images are not labeled for this task. {roles.after.capitalize()} and {roles.before} "
        f"predict different classes on {fmt.pluralize(len(examples), 'image')}.",
        f"{task.name}: {len(examples):,} on the new images",
    )  # fmt: skip


def _build_changes(
    title: str,
    examples: list[Example],
    set_name: str,
    labels: tuple[str, str],
    head: tuple[str, ...],
    galleries: GalleryBuilder,
    text: str = "",
    gist: str = "",
) -> Changes:
    rows = [(example.image, example.first, example.second) for example in examples]
    return Changes(gist, text, galleries.build(title, labels, set_name, examples), build_long_table(title, head, rows))


# ---- lineage, settings, data -----------------------------------------------------------------------------------


def _learned_tasks(record: Record) -> list[tuple[str, str, Mapping[str, float]]]:
    """Task, method and accuracy of every task after each step of the lineage, this run being the last."""
    steps = [
        (str(entry.get("task")), str(entry.get("method")), entry.get("accuracy", {}))
        for entry in record.parent.get("lineage", ())
    ]
    final = {task.name: task.child.mean for task in record.tasks if task.child}
    return [*steps, (run_summary.learned_name(record), record.method, final)]


def _list_lineage(record: Record) -> list[tuple[str, list[str]]]:
    """Every model from the first to this one: a title and lines about it."""
    models = [*(entry.get("parent", {}) for entry in record.parent.get("lineage", ())), record.parent]
    tasks = ", ".join(map(str, models[0].get("tasks", ()))) or "no task yet"
    first = f"{models[0].get('architecture', 'a classifier')}: {tasks}"
    steps = [(_model_name(models[0]), [first, *_list_digest(models[0])])]
    for (task, method, accuracy), model in zip(_learned_tasks(record), [*models[1:], None], strict=True):
        values = ", ".join(f"{name} {fmt.percent(value)} %" for name, value in accuracy.items())
        lines = [f"{'trained' if method == 'train' else f'with {method}'}: {values or 'not measured'}"]
        if model is not None:  # no file can hold its own digest
            lines += [f"saved as {_model_name(model)}", *_list_digest(model)]
        if model is not None or not run_summary.is_taught(record):
            title = f"Learned {task}"
        else:  # the parent had all tasks
            title = f"{' and '.join(one.name for one in record.tasks)} on one backbone"
        steps.append((f"{title}{' (this run)' if model is None else ''}", lines))
    return steps


def _model_name(model: Mapping[str, Any]) -> str:
    """The name of a model, or of both that were merged."""
    sources = [str(model[key]) for key in ("source", "other") if key in model] or ["unknown"]
    return " and ".join(PurePath(source).name or source for source in sources)


def _list_digest(model: Mapping[str, Any]) -> list[str]:
    return [f"SHA-256 {fmt.setting(model['digest'])}"] if model.get("digest") else []


def _build_lineage_table(record: Record) -> Table | None:
    learned = _learned_tasks(record)
    if len(learned) < 2:
        return None
    names = dict.fromkeys(name for _, _, accuracy in learned for name in accuracy)
    rows = [(name, *(fmt.percent(accuracy.get(name)) for _, _, accuracy in learned)) for name in names]
    heads = [f"after {task}" for task, _, _ in learned]
    head = ("Task", *heads[:-1], "this run" if heads[-1] in heads[:-1] else heads[-1])
    return Table("Accuracy (%) of each task after each step, where it was measured", head, rows)


def _build_digests(record: Record) -> Table:
    parent = record.parent
    digests = {"parent": parent.get("digest")}
    digests |= {f"parent / {name}": digest for name, digest in parent.get("files", {}).items()}
    digests |= {"labels of the parent": parent.get("labels")}
    digests |= {f"images / {name}": data.get("fingerprint") for name, data in record.data.items()}
    rows = [(name, str(digest)) for name, digest in digests.items() if digest]
    return Table("SHA-256 of all inputs of this run", ("Input", "SHA-256"), rows, (0, 1), (1,))


def _build_settings(record: Record) -> Table:
    """Settings that were chosen, each with the reason; defaults have a table of their own."""
    chosen = [setting for setting in record.settings if setting[2] != "default"]
    rows = [("method", record.method, ""), *chosen]
    return Table("Chosen settings", ("Setting", "Value", "Reason"), rows, (0, 1, 2), (1,))


def _build_data_tables(record: Record) -> list[Table]:
    described = {f"Data: {name}": data for name, data in record.data.items()} | {
        run_summary.roles(record).before.capitalize(): record.parent
    }
    listed_elsewhere = ("counts", "excluded", "notes", "lineage", "files")
    return [
        build_pairs_table(
            title,
            ("Property", "Value"),
            fmt.flatten({key.replace("_", " "): value for key, value in data.items() if key not in listed_elsewhere}),
        )
        for title, data in described.items()
    ]


def _build_data_lists(record: Record) -> list[Table]:
    """Images of each class, and excluded images with their reasons: long, so closed at first."""
    tables = []
    for name, data in record.data.items():
        counts = [(label, fmt.setting(count)) for label, count in data.get("counts", {}).items()]
        tables.append(Table(f"{name}: images of each class", ("Class", "Images"), counts))
        total = data.get("excluded_count", 0)
        caption = f"{name}: {fmt.pluralize(total, 'excluded image')}"
        tables.append(build_long_table(caption, ("Image", "Reason"), data.get("excluded", ()), total))
    return tables


def _build_measurements(record: Record) -> list[Table]:
    names = dict(zip(PARENT_AND_CHILD, run_summary.roles(record), strict=True))
    counts = [(names.get(name, name), f"{value:,}") for name, value in record.parameters.items()]
    times = [(name, fmt.duration(value)) for name, value in record.seconds.items()]
    latency = [(names.get(name, name), f"{1000 * value:.1f} ms") for name, value in record.latency.items()]
    return [
        build_pairs_table("Parameters", ("Model", "Parameters"), counts),
        build_pairs_table("Time", ("Part", "Time"), times),
        build_pairs_table("Batch-1 latency on the training machine", ("Model", "Time"), latency),
        build_pairs_table("Versions", ("Package", "Version"), record.versions.items()),
    ]


def format_model_card(record: Record) -> str:
    """Format the model card, README.md of a bundle: Markdown with the YAML metadata that model hubs read."""
    loading = (
        "The last layer holds the logits of all tasks; `config.json` lists the rows of each under `taskgraft.tasks`."
        if record.one_backbone
        else "The model is more than a linear layer on one backbone, so timm alone cannot rebuild it. Load it with "
        "`taskgraft.open_parent`."
    )
    architecture = record.architecture or record.parent.get("architecture", "classifier")
    rows = []
    for task in record.tasks:
        before = fmt.estimate(task.parent)
        after = f"{fmt.estimate(task.child)}, {fmt.pluralize(task.child.n, 'image')}" if task.child else "not measured"
        name = fmt.escape_markdown(task.name)
        rows.append(f"| {name} | {len(task.classes)} | {before} | {after} | {fmt.change(task.forgetting)} |")
    return "\n".join((
        "---",
        f"library_name: {'timm' if record.one_backbone else 'taskgraft'}",
        "pipeline_tag: image-classification",
        "tags: [image-classification, timm, taskgraft]",
        "---",
        "",
        f"# {' + '.join(task.name for task in record.tasks)}",
        "",
        f"A {architecture} for {fmt.pluralize(len(record.tasks), 'task')}, made by taskgraft with the method "
        f"`{record.method}`.",
        "",
        "Validation accuracy in percent, with 95 % confidence intervals:",
        "",
        f"| Task | Classes | {run_summary.roles(record).before.capitalize()} | This model | Change |",
        "|---|---|---|---|---|",
        *rows,
        "",
        loading,
        "",
        *(f"- {fmt.escape_markdown(note)}" for note in record.notes),
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
