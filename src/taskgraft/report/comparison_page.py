"""The page of a comparison, with the figures of the reference experiment, and its table in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan

from taskgraft.report import figures, summary
from taskgraft.report import formatting as fmt
from taskgraft.report.page import Figure, Table, build_line_figure, build_pairs_table, render
from taskgraft.report.summary import Row
from taskgraft.results.record import Comparison, VariantResult


def render_comparison(comparison: Comparison) -> str:
    """Render the report of several configurations, extended from one parent with the same data.

    Args:
        comparison: The runs of every configuration.

    Returns:
        One offline HTML page.
    """
    variants = comparison.variants
    rows = summary.build_rows(comparison)
    runs = [(variant.label, record) for variant in variants for record in variant.records]
    first = runs[0][1] if runs else None
    winner = summary.find_best(rows)
    names = (summary.old_name(first), summary.new_name(first)) if first else ("old tasks", "new task")
    tradeoff = figures.build_tradeoff_chart(rows, *names)
    losses = [
        figures.build_loss_chart(f"loss{i}", one.label, one.records) for i, one in enumerate(variants) if one.records
    ]
    context = {
        "comparison": comparison,
        "summary": summary.summarize_comparison(comparison),
        "best": None if winner is None else rows[winner],
        "seconds": sum(row.seconds for row in rows),
        "table_data": _build_table(rows, winner, *names),
        "remarks": summary.list_remarks(comparison, rows),
        "agreement": any(row.agreement for row in rows),
        "figures": [build_line_figure(chart) for chart in figures.build_reference_figures(comparison)],
        "tradeoff": None if tradeoff is None else Figure(tradeoff, (_build_tradeoff_table(rows, *names),)),
        "losses": [build_line_figure(chart, "small") for chart in losses if chart is not None],
        "bands": figures.describe_bands(max((one.records for one in variants), key=len, default=())),
        "failures": build_pairs_table("Failed runs", ("Configuration", "Reason"), comparison.failures),
        "notes": build_pairs_table(
            "Notes on single runs",
            ("Configuration", "Note"),
            dict.fromkeys((label, note) for label, record in runs for note in record.notes),
        ),
        "settings": _build_settings(variants),
        "run_commands": Table(
            "Command of each run",
            ("Configuration", "Seed", "Command"),
            tuple((label, str(one.seed), one.command) for label, one in runs if one.command != comparison.command),
            (0, 2),
            (2,),
        ),
        "details": [
            build_pairs_table(
                "Run folders",
                ("Configuration", "Folder"),
                [(one.label, folder) for one in variants for folder in one.folders],
            ),
            build_pairs_table(
                "Single-task models",
                ("Task", "Accuracy of each seed (%)"),
                [(name, ", ".join(map(fmt.percent, values))) for name, values in comparison.separate.items()],
            ),
            build_pairs_table("Versions", ("Package", "Version"), first.versions.items() if first else ()),
        ],
    }
    return render("comparison.html.j2", **context)


def format_comparison_table(comparison: Comparison) -> str:
    """Format the comparison as a Markdown table with intervals, the best configuration in bold, and remarks."""
    rows = summary.build_rows(comparison)
    winner = summary.find_best(rows)
    lines = ["| Configuration | " + " | ".join(summary.TABLE_HEAD) + " |", "|---|" + "---:|" * len(summary.TABLE_HEAD)]
    for i, row in enumerate(rows):
        bold = "**" if i == winner else ""
        cells = (fmt.escape_markdown(row.label), *summary.table_cells(row))
        lines.append("| " + " | ".join(f"{bold}{cell}{bold}" for cell in cells) + " |")
    return "\n".join([*lines, "", *summary.list_remarks(comparison, rows)]) + "\n"


def _build_table(rows: Sequence[Row], winner: int | None, old: str, new: str) -> Table:
    agreement = any(row.agreement for row in rows)
    shown = [i for i, name in enumerate(summary.TABLE_HEAD) if agreement or not name.startswith("Agreement")]
    cells = [(row.label, *(fmt.use_minus_signs(summary.table_cells(row)[i]) for i in shown)) for row in rows]
    caption = f"Old tasks: {old}. New task: {new}. At the step with the highest Score; best configuration in bold"
    head = ("Configuration", *(summary.TABLE_HEAD[i] for i in shown))
    return Table(caption, head, tuple(cells), bold=winner)


def _build_tradeoff_table(rows: Sequence[Row], old: str, new: str) -> Table:
    caption = "Final accuracy, with 95 % t-intervals over seeds"
    if any(row.old and isnan(row.old.half_width) for row in rows):
        caption = "Final accuracy"
    cells = tuple((row.label, str(row.old), str(row.new)) for row in rows if row.old and row.new)
    return Table(caption, ("Configuration", f"{old} (%)", f"{new} (%)"), cells)


def _build_settings(variants: Sequence[VariantResult]) -> list[Table]:
    """What differs between configurations, and what they share with the reason for it."""
    configs = [dict(fmt.flatten(variant.config)) for variant in variants]
    differing = summary.find_differing_settings(variants)
    record = next((record for variant in variants for record in variant.records), None)
    reasons = {name: reason for name, _, reason in record.settings} if record else {}
    rows = []
    for variant, config in zip(variants, configs, strict=True):
        steps = ", ".join(f"{record.step} (seed {record.seed})" for record in variant.records) or fmt.MISSING
        rows.append((variant.label, variant.method, *(config.get(name, fmt.MISSING) for name in differing), steps))
    names = dict.fromkeys(name for config in configs for name in config)
    shared = tuple(
        (name, configs[0][name], reasons.get(name, "")) for name in names if name != "seed" and name not in differing
    )
    head = ("Configuration", "Method", *differing, "Selected step of each seed")
    return [
        Table("Differing settings", head, tuple(rows), tuple(range(len(head))), (1,)),
        Table("Shared settings", ("Setting", "Value", "Reason"), shared, (0, 1, 2)),
    ]
