"""The page of a comparison, with the figures of the reference experiment, and its table in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan
from pathlib import Path

from taskgraft.methods.presets import is_baseline
from taskgraft.report import charts, comparison_summary, figures, run_summary
from taskgraft.report import formatting as fmt
from taskgraft.report.comparison_summary import MIN_SEEDS, Row
from taskgraft.report.page import Figure, Table, build_line_figure, build_pairs_table, render
from taskgraft.results.files import write_text
from taskgraft.results.record import Comparison, VariantResult

TABLE_HEAD = (
    "Score (%)", "Old tasks (%)", "New task (%)", "Forgetting (points)", "Gap to two models (points)",
    "Agreement (%)", "Parameters", "FLOPs", "Latency (ms)",
)  # fmt: skip


def write_comparison_report(comparison: Comparison, out: Path) -> None:
    """Write table.md, the figures and report.html of a comparison to its folder."""
    write_text(out / "table.md", format_comparison_table(comparison))
    for chart in figures.build_reference_figures(comparison):
        charts.write_png(chart, out / f"{chart.key}.png")
    write_text(out / "report.html", render_comparison(comparison))


def render_comparison(comparison: Comparison) -> str:
    """Render the report of several configurations, extended from one parent with the same data.

    Args:
        comparison: The runs of every configuration.

    Returns:
        One offline HTML page.
    """
    variants = comparison.variants  # charts keep the given order
    ordered = comparison_summary.put_baseline_first(comparison)
    rows, target = comparison_summary.build_rows(ordered), comparison_summary.find_target(comparison)
    best = comparison_summary.find_best(rows)
    records = [record for variant in variants for record in variant.records]
    first = records[0] if records else None
    names = (run_summary.old_name(first), run_summary.new_task(first).name) if first else ("old tasks", "new task")
    tradeoff = figures.build_tradeoff_chart(comparison_summary.build_rows(comparison), *names, target)
    losses = [
        figures.build_loss_chart(f"loss{i}", variant.label, variant.records) for i, variant in enumerate(variants)
    ]
    reference = figures.build_reference_figures(comparison)
    differing, shared = _build_settings(ordered.variants)
    return render(
        "comparison.html.j2",
        comparison=comparison,
        summary=comparison_summary.summarize_comparison(comparison),
        best=None if best is None else rows[best],
        seconds=sum(row.seconds for row in rows),
        table_data=_build_table(rows, best, *names),
        remarks=_list_remarks(comparison, rows),
        agreement=any(row.agreement for row in rows),
        parent_latency=comparison_summary.median_latency(records, "parent"),
        baselines=[build_line_figure(chart, "small") for chart in reference if chart.key != figures.OVERVIEW],
        overview=[build_line_figure(chart) for chart in reference if chart.key == figures.OVERVIEW],
        tradeoff=None if tradeoff is None else Figure(tradeoff, [_build_tradeoff_table(rows, *names, target)]),
        losses=[build_line_figure(chart, "small") for chart in losses if chart is not None],
        bands=figures.describe_bands(max((variant.records for variant in variants), key=len, default=())),
        failures=build_pairs_table("Failed runs", ("Configuration", "Reason"), comparison.failures),
        notes=build_pairs_table(
            "Notes on single runs",
            ("Configuration", "Note"),
            dict.fromkeys((v.label, note) for v in variants for record in v.records for note in record.notes),
        ),
        settings=[differing, shared],
        settings_gist=_summarize_settings(ordered.variants),
        run_commands=_build_commands(comparison),
        details=[
            build_pairs_table(
                "Run folders",
                ("Configuration", "Folder"),
                [(variant.label, folder) for variant in variants for folder in variant.folders],
            ),
            build_pairs_table(
                "Single-task models",
                ("Task", "Accuracy of each seed (%)"),
                [(name, ", ".join(map(fmt.percent, values))) for name, values in comparison.separate.items()],
            ),
            build_pairs_table("Versions", ("Package", "Version"), records[0].versions.items() if records else ()),
        ],
    )


def list_comparison_rows(comparison: Comparison) -> tuple[list[str], list[list[str]], int | None]:
    """List the cells of the comparison's table: the head, the rows, and the number of the best row."""
    rows = comparison_summary.build_rows(comparison_summary.put_baseline_first(comparison))
    cells = [[row.label, *_format_row(row, one_seed=_is_one_seed(rows))] for row in rows]
    return ["Configuration", *TABLE_HEAD], cells, comparison_summary.find_best(rows)


def list_comparison_remarks(comparison: Comparison) -> list[str]:
    """List what a reader must know to read the table correctly."""
    return _list_remarks(comparison, comparison_summary.build_rows(comparison))


def format_comparison_table(comparison: Comparison) -> str:
    """Format the comparison as a Markdown table with intervals, the best configuration in bold, and remarks."""
    rows = comparison_summary.build_rows(comparison_summary.put_baseline_first(comparison))
    best = comparison_summary.find_best(rows)
    lines = ["| Configuration | " + " | ".join(TABLE_HEAD) + " |", "|---|" + "---:|" * len(TABLE_HEAD)]
    for i, row in enumerate(rows):
        bold = "**" if i == best else ""
        cells = (fmt.escape_markdown(row.label), *_format_row(row, one_seed=_is_one_seed(rows)))
        lines.append("| " + " | ".join(f"{bold}{cell}{bold}" for cell in cells) + " |")
    return "\n".join([*lines, "", *_list_remarks(comparison, rows)]) + "\n"


def _format_row(row: Row, *, one_seed: bool) -> list[str]:
    """The cells of a row in the order of TABLE_HEAD; with `one_seed` in all rows, the cells do not repeat it."""
    means = (row.score, row.old, row.new, row.forgetting, row.gap, row.agreement)
    ratios = (row.parameter_ratio, row.flops_ratio)
    return [
        *(str(mean or fmt.MISSING).removesuffix(" (1 seed)" if one_seed else "") for mean in means),
        *(fmt.MISSING if ratio is None else f"{ratio:.2f}x" for ratio in ratios),
        fmt.MISSING if row.latency is None else f"{1000 * row.latency:.1f}",
    ]


def _is_one_seed(rows: Sequence[Row]) -> bool:
    return all(row.seeds <= 1 for row in rows)


def _list_remarks(comparison: Comparison, rows: Sequence[Row]) -> list[str]:
    """What a reader must know to read the table correctly."""
    fewest = min((row.seeds for row in rows if row.seeds), default=MIN_SEEDS)
    remarks = ["± is the 95 % t-interval of the mean over seeds."]
    if fewest < MIN_SEEDS:
        seeds = fmt.pluralize(fewest, "seed")
        remarks = [f"Only {seeds}: a comparison needs at least three; differences may be chance."]
    if len(rows) > 1 and any(is_baseline(row.method) for row in rows):
        remarks.append("The first row is the best plain fine-tuning: the baseline to beat.")
    if any(row.seeds and row.score is None for row in rows):
        remarks.append(
            "Old-task accuracy is unknown without old validation images (--old-val DIR), so there is no Score. "
            "Agreement with the parent is only a proxy for it."
        )
    differing = comparison_summary.find_differing_settings(comparison.variants)
    if set(differing) - {"lr"}:
        values = "; ".join(f"{name} ({', '.join(dict.fromkeys(column))})" for name, column in differing.items())
        remarks.append(f"The configurations differ in more than the method: {values}.")
    if all(row.gap is None for row in rows):
        remarks.append("No single-task baseline was trained.")
    return remarks


def _build_table(rows: Sequence[Row], best: int | None, old: str, new: str) -> Table:
    agreement = any(row.agreement for row in rows)
    columns = [i for i, name in enumerate(TABLE_HEAD) if agreement or not name.startswith("Agreement")]
    cells = []
    for row in rows:
        values = _format_row(row, one_seed=_is_one_seed(rows))
        cells.append((row.label, *(fmt.use_minus_signs(values[i]) for i in columns)))
    caption = f"Old tasks: {old}. New task: {new}. At the step with the highest Score; best configuration in bold"
    return Table(caption, ("Configuration", *(TABLE_HEAD[i] for i in columns)), cells, bold=best)


def _build_tradeoff_table(rows: Sequence[Row], old: str, new: str, target: tuple[float, float] | None) -> Table:
    caption = "Final accuracy, with 95 % t-intervals over seeds"
    if any(row.old and isnan(row.old.half_width) for row in rows):
        caption = "Final accuracy"
    cells = [(row.label, str(row.old), str(row.new)) for row in rows if row.old and row.new]
    cells += [(figures.TARGET, *map(fmt.percent, target))] if target else []
    return Table(caption, ("Configuration", f"{old} (%)", f"{new} (%)"), cells)


def _build_commands(comparison: Comparison) -> Table:
    rows = [
        (variant.label, str(record.seed), record.command)
        for variant in comparison.variants
        for record in variant.records
        if record.command != comparison.command
    ]
    return Table("Command of each run", ("Configuration", "Seed", "Command"), rows, (0, 2), (2,))


def _summarize_settings(variants: Sequence[VariantResult]) -> str:
    differing = list(comparison_summary.find_differing_settings(variants))
    return f"{', '.join(differing)} {'differs' if len(differing) == 1 else 'differ'}" if differing else "all the same"


def _build_settings(variants: Sequence[VariantResult]) -> tuple[Table, Table]:
    """What differs between configurations, and what they share with the reason for it."""
    differing = comparison_summary.find_differing_settings(variants)
    configs = [comparison_summary.resolve_settings(variant) for variant in variants]
    record = next((record for variant in variants for record in variant.records), None)
    reasons = {name: reason for name, _, reason in record.settings} if record else {}
    rows = []
    for i, variant in enumerate(variants):
        steps = ", ".join(str(record.step) for record in variant.records) or fmt.MISSING
        rows.append((variant.label, variant.method, *(column[i] for column in differing.values()), steps))
    shared = [
        (name, value, reasons.get(name, ""))
        for name, value in (configs[0].items() if configs else ())
        if name not in differing
    ]
    head = ("Configuration", "Method", *differing, "Selected step of each seed")
    return (
        Table("What differs between the configurations", head, rows, range(len(head)), (1,)),
        Table("Settings that all configurations share", ("Setting", "Value", "Reason"), shared, (0, 1, 2)),
    )
