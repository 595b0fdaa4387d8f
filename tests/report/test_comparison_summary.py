"""The summary of a comparison: rows that match the records, Markdown tables that agree with the page."""

from __future__ import annotations

import numpy as np
import pytest

from fake_results import PageReader, fake_comparison
from taskgraft import metrics, report
from taskgraft.report import charts
from taskgraft.report.comparison_summary import find_target
from taskgraft.results.record import Comparison


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return fake_comparison()


@pytest.fixture(scope="module")
def table(pages: dict[str, str]) -> list[list[str]]:
    return PageReader(pages["comparison"]).table("Old tasks: make.")


def test_table_matches_the_records(comparison, table):
    strongest = comparison.variants[1]  # of the two rows of plain fine-tuning
    ordered = [strongest, *(variant for variant in comparison.variants if variant is not strongest)]
    for variant, row in zip(ordered, table[1:], strict=True):
        old = [record.tasks[0].child.mean for record in variant.records]
        new = [record.tasks[1].child.mean for record in variant.records]
        scores = [record.score for record in variant.records]
        lost = [record.tasks[0].parent.mean - a for record, a in zip(variant.records, old, strict=True)]
        gaps = [
            metrics.gap(score, {"make": 0.87, "colour": alone})
            for score, alone in zip(scores, comparison.separate["colour"], strict=True)
        ]
        assert row[0] == variant.label
        assert [cell.replace("−", "-") for cell in row[1:6]] == [
            "{:.1f} ± {:.1f}".format(*(100 * value for value in metrics.t_interval(values)))
            for values in (scores, old, new, lost, gaps)
        ]


def test_markdown_table_agrees_with_the_page(comparison, table, pages):
    bold = [line for line in report.format_comparison_table(comparison).splitlines() if line.startswith("| **")]
    best = max(comparison.variants, key=lambda variant: np.mean([record.score for record in variant.records]))
    assert [line.split("|")[1].strip(" *") for line in bold] == [best.label]
    row = next(row for row in table if row[0] == best.label)
    assert [cell.strip(" *") for cell in bold[0].split("|")[2:7]] == [cell.replace("−", "-") for cell in row[1:6]]
    assert pages["comparison"].count('class="best"') == 1


def test_rows_have_latency_and_resolved_settings_as_their_runs_recorded_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charts, "render_svg", lambda *args: "<svg></svg>")  # they take most of the time
    comparison = fake_comparison(3)
    first = comparison.variants[0]
    records = tuple(
        record.model_copy(
            update={"latency": {"child": seconds, "parent": 0.01}, "config": record.config | {"precision": precision}}
        )
        for record, seconds, precision in zip(
            first.records, (0.0123, 0.9, 0.002), ("fp32", "bf16", "fp32"), strict=True
        )
    )
    variants = (first.model_copy(update={"records": records}), *comparison.variants[1:])
    reader = PageReader(report.render_comparison(comparison.model_copy(update={"variants": variants})))
    column = reader.table("Old tasks: make.")[0].index("Latency (ms)")
    assert {row[0]: row[column] for row in reader.table("Old tasks: make.")[1:]} == {
        variant.label: "12.3" if variant is variants[0] else "–"
        for variant in variants  # older records have none
    }
    assert "the parent's: 10.0 ms" in reader.plain_text
    head, *rows = reader.table("What differs between the configurations")
    assert head[1:4] == ["Method", "lr", "precision"]
    assert {row[0]: row[3] for row in rows} == {
        variant.label: "fp32 or bf16" if variant is variants[0] else "–" for variant in variants
    }
    assert "lr, precision differ" in reader.plain_text


def test_scatter_marks_two_separate_models(comparison: Comparison, pages: dict[str, str]) -> None:
    target = "two separate models: 87.0 % old, 95.5 % new"
    assert target in PageReader(pages["comparison"]).tooltips("tradeoff-plot")
    assert PageReader(pages["comparison"]).table("Final accuracy")[-1] == ["two separate models", "87.0", "95.5"]
    assert find_target(comparison.model_copy(update={"separate": {}})) is None


def test_markdown_table_escapes_labels() -> None:
    comparison = fake_comparison(1)
    hostile = comparison.variants[0].model_copy(update={"label": "a | b\n<script>alert(1)</script>"})
    text = report.format_comparison_table(comparison.model_copy(update={"variants": (hostile,)}))
    assert "<script>" not in text
    assert r"a \| b &lt;script>" in text


def test_single_seed_has_no_interval_and_asks_for_three() -> None:
    comparison = fake_comparison(1)
    text = report.format_comparison_table(comparison)
    assert "(1 seed)" not in text  # of every cell, so one line says it
    assert "Only 1 seed" in text
    assert "±" not in text
    assert "needs at least three" in text
    assert report.summarize_comparison(comparison).to_lines()[4].endswith("out --task colour --seeds 3")


def test_comparison_names_the_best_baseline(comparison: Comparison) -> None:
    assert (
        "best fine-tuning baseline (Baseline (low rate), other settings)"
        in report.summarize_comparison(comparison).judgement
    )


def test_a_row_of_one_seed_among_others_says_so() -> None:
    comparison = fake_comparison(3)
    first = comparison.variants[0]
    short = comparison.model_copy(
        update={"variants": (first.model_copy(update={"records": first.records[:1]}), *comparison.variants[1:])}
    )
    lines = report.format_comparison_table(short).splitlines()
    assert [first.label in line for line in lines if "(1 seed)" in line] == [True]


def test_without_old_images_a_proxy_ranks() -> None:
    comparison = fake_comparison(3, with_old=False)
    assert "proxy" in report.summarize_comparison(comparison).result
    assert "--old-val DIR" in report.format_comparison_table(comparison)


@pytest.mark.parametrize(
    "comparison",
    [fake_comparison(3), fake_comparison(1), fake_comparison(1).model_copy(update={"variants": ()})],
)
def test_summary_has_five_printable_lines(comparison: Comparison) -> None:
    lines = report.summarize_comparison(comparison).to_lines()
    assert len(lines) == 5
    assert all(line and line.isprintable() for line in lines)
