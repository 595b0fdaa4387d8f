"""The report of a comparison: the founding text's table and figures, with intervals over seeds."""

from __future__ import annotations

from collections.abc import Sequence

from taskgraft.report import charts, formatting, history, summary
from taskgraft.report.formatting import percent, typeset
from taskgraft.report.page import (
    Block,
    Card,
    Code,
    Fold,
    Page,
    Plot,
    Plots,
    Section,
    Table,
    Text,
    chart_plot,
    pairs,
    render,
)
from taskgraft.report.summary import Row
from taskgraft.report.verdict import Verdict, judge_comparison
from taskgraft.results.record import Comparison, VariantResult

AGREEMENT = (
    "Agreement is the share of the new task's validation images on which child and parent give the same "
    "answer for the old task."
)


def render_comparison(comparison: Comparison) -> str:
    """The HTML report of several arrangements from one parent on one data set, in one offline file."""
    rows = summary.summarize(comparison)
    verdict = judge_comparison(comparison)
    sections = (
        _table_section(comparison, rows),
        _figures_section(comparison),
        _frontier_section(comparison, rows),
        _losses_section(comparison),
        _notes_section(comparison),
        _settings_section(comparison),
        _commands_section(comparison),
    )
    page = Page(
        comparison.title,
        "taskgraft · comparison of methods",
        _sentence(verdict.result),
        _cards(rows, verdict),
        tuple(section for section in sections if section.blocks),
        "Every number is from validation images. This page needs no network.",
    )
    return render(page)


def _sentence(text: str) -> str:
    return typeset(text[:1].upper() + text[1:] + ".")


def _cards(rows: tuple[Row, ...], verdict: Verdict) -> tuple[Card, ...]:
    winner = summary.best(rows)
    answer = "No result" if winner is None else rows[winner].label
    tone = "unknown" if winner is not None and rows[winner].score is None else verdict.status
    worked = (_sentence(verdict.judgement), _sentence(verdict.gap))
    spent = formatting.duration(sum(row.seconds for row in rows))
    why, _, last = verdict.why.partition("; ")
    step = (last or why).removeprefix("next, ")
    follow = () if not last else (_sentence(why),)
    headline = "Run three seeds." if last else _sentence(step)
    cost = verdict.cost.partition("; ")[2]
    return (
        Card("What works best?", answer, worked, tone=tone),
        Card("What did it cost?", spent, (_sentence(cost),)),
        Card("What next?", headline, follow, verdict.command),
    )


def _table_section(comparison: Comparison, rows: tuple[Row, ...]) -> Section:
    records = [record for one in comparison.variants for record in one.records]
    old, new = (history.old_name(records[0]), history.new_name(records[0])) if records else ("old", "new")
    proxy = any(row.score is None for row in rows if row.seeds)
    agreed = proxy or any(row.agreement for row in rows)
    shown = [i for i, name in enumerate(summary.HEAD) if agreed or not name.startswith("Agreement")]
    table = Table(
        f"Score_A is accuracy on {old}, Score_B on {new}, at the step with the best mean; the best is bold",
        ("Arrangement", *(summary.HEAD[i] for i in shown)),
        tuple((row.label, *(typeset(summary.cells(row)[i]) for i in shown)) for row in rows),
        strong=summary.best(rows),
    )
    remarks = [
        Text(text, "warning" if "seeds are needed" in text or "unknown," in text else "note")
        for text in summary.remarks(comparison, rows)
    ]
    explained = Text(
        "Forgetting is the parent's accuracy on the old tasks minus the child's. The gap is the mean "
        "accuracy of two separate models (the parent, one trained for the new task alone) minus the Score. "
        "Parameters and FLOPs of one image are the child's over the parent's. " + (AGREEMENT if agreed else ""),
        "note",
    )
    return Section("table", "Scores", (table, *remarks, explained))


def _figures_section(comparison: Comparison) -> Section:
    found = history.founding_figures(comparison)
    return Section(
        "figures",
        "Figures",
        tuple(chart_plot(chart) for chart in found),
    )


def _frontier_section(comparison: Comparison, rows: tuple[Row, ...]) -> Section:
    known = [row for row in rows if row.old is not None and row.new is not None]
    if not known:
        return Section("frontier", "Old against new", ())
    first = next(record for one in comparison.variants for record in one.records)
    names = history.old_name(first), history.new_name(first)
    looks = charts.styles([one.method for one in comparison.variants])
    table = Table(
        "Accuracy at the kept step, with 95 % t-intervals over seeds",
        ("Arrangement", f"{names[0]} (%)", f"{names[1]} (%)"),
        tuple((row.label, str(row.old), str(row.new)) for row in known),
    )
    return Section("frontier", "Old against new", (Plot(history.frontier(rows, looks, names), (table,)),))


def _losses_section(comparison: Comparison) -> Section:
    found = [
        history.loss_chart(f"loss{i}", one.label, one.records)
        for i, one in enumerate(comparison.variants)
        if one.records
    ]
    items = tuple(chart_plot(chart, "small") for chart in found if chart is not None)
    most = max((one.records for one in comparison.variants), key=len, default=())
    said = Text(f"{history.TERMS} {history.bands(most)}", "note")
    return Section("losses", "Loss terms", (said, Plots(items)) if items else ())


def _notes_section(comparison: Comparison) -> Section:
    blocks: list[Block] = [Text(note) for note in comparison.notes]
    if comparison.failures:
        rows = tuple(comparison.failures)
        blocks.insert(0, Table("Runs that failed", ("Arrangement", "Reason"), rows, (0, 1)))
    own = [(one.label, note) for one in comparison.variants for record in one.records for note in record.notes]
    blocks += pairs("Notes of single runs", ("Arrangement", "Note"), list(dict.fromkeys(own)))
    return Section("notes", "Failures and notes", tuple(blocks))


def _settings_section(comparison: Comparison) -> Section:
    variants = comparison.variants
    settings = [dict(formatting.flat(one.config)) for one in variants]
    differing = summary.differing(variants)
    names = dict.fromkeys(name for one in settings for name in one)
    same = [name for name in names if name != "seed" and name not in differing]
    reasons = _reasons(variants)
    rows = tuple(
        (one.label, one.method, *(values.get(name, formatting.NOTHING) for name in differing), _steps(one))
        for one, values in zip(variants, settings, strict=True)
    )
    columns = ("Arrangement", "Method", *differing, "Kept step of each seed")
    tables: list[Block] = []
    if rows:
        tables.append(Table("What differs", columns, rows, tuple(range(len(columns))), code=(1,)))
    if same:
        known = any(name in reasons for name in same)
        shared = [(name, settings[0][name], *((reasons.get(name, ""),) if known else ())) for name in same]
        head = ("Setting", "Value", "Reason") if known else ("Setting", "Value")
        tables.append(Table("What all have in common", head, tuple(shared), (0, 1, 2)))
    return Section("settings", "Settings", tuple(tables))


def _steps(variant: VariantResult) -> str:
    return ", ".join(f"{record.step} (seed {record.seed})" for record in variant.records) or formatting.NOTHING


def _reasons(variants: Sequence[VariantResult]) -> dict[str, str]:
    first = next((record for one in variants for record in one.records), None)
    return {name: why for name, _, why in first.settings} if first else {}


def _commands_section(comparison: Comparison) -> Section:
    blocks: list[Block] = [Code("The whole comparison:", comparison.command)]
    commands = [(one.label, record) for one in comparison.variants for record in one.records]
    own = tuple(
        (label, str(record.seed), record.command) for label, record in commands if record.command != comparison.command
    )
    if own:
        head = ("Arrangement", "Seed", "Command")
        blocks.append(Fold("The command of each run", Table("Each run by itself", head, own, (0, 2), code=(2,))))
    folders = [(one.label, folder) for one in comparison.variants for folder in one.folders]
    blocks += pairs("Where the runs lie", ("Arrangement", "Folder"), folders)
    if comparison.separate:
        rows = [(name, ", ".join(percent(value) for value in values)) for name, values in comparison.separate.items()]
        blocks += pairs("Models trained for the new task alone", ("Task", "Accuracy of each seed (%)"), rows)
    versions = commands[0][1].versions if commands else {}
    blocks += pairs("Versions", ("What", "Version"), list(versions.items()))
    return Section("commands", "To repeat this", tuple(blocks))
