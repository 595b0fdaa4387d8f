"""Summaries: five true lines for the terminal, Markdown tables that agree with the page."""

from __future__ import annotations

import numpy as np
import pytest

from fake_results import MAKES, PageReader, fake_comparison, fake_record
from taskgraft import metrics, report
from taskgraft.report import charts, formatting
from taskgraft.report.summary import Summary, find_target
from taskgraft.results.record import Comparison, Interval, Record


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return fake_comparison()


@pytest.fixture(scope="module")
def table(pages: dict[str, str]) -> list[list[str]]:
    return PageReader(pages["comparison"]).table("Old tasks: make.")


def first_task() -> Record:
    record = fake_record()
    task = record.tasks[0].model_copy(update={"new": True, "parent": None, "forgetting": None, "agreement": None})
    parameters = {"parent": 0, "child": 11_000_000, "added": 11_000_000}
    command = "taskgraft train cars alice --task make"
    return record.model_copy(update={"reproduce_command": command, "tasks": (task,), "parameters": parameters})


def with_new_task(**update: object) -> Summary:
    record = fake_record()
    return report.summarize_run(
        record.model_copy(update={"tasks": (record.tasks[0], record.tasks[1].model_copy(update=update))})
    )


def test_a_model_of_the_majority_class_has_not_learned() -> None:
    child = Interval(mean=26 / 29, low=0.76, high=1.0, n=29)
    update = {"chance": 26 / 29, "majority": "silver", "balanced": 0.5, "never_predicted": ("white",)}
    summary = with_new_task(child=child, **update)
    assert summary.status == "poor"
    assert summary.judgement == (
        "colour not learned: accuracy is indistinguishable from always predicting 'silver' (89.7 %)"
    )
    assert "colour 89.7 (balanced accuracy 50.0; never predicted: white)" in summary.result


def test_one_added_class_that_is_always_right_is_learned() -> None:
    child = Interval(mean=1.0, low=1.0, high=1.0, n=20)
    summary = with_new_task(child=child, classes=("teal",), chance=1 / 11, majority="teal")
    assert "not learned" not in summary.judgement
    few = with_new_task(child=child.model_copy(update={"low": 0.05}), classes=("teal",), chance=1 / 11, majority="teal")
    assert few.judgement == "colour not learned: accuracy is indistinguishable from chance"


def test_formatting() -> None:
    interval = Interval(mean=0.0123, low=-0.01, high=0.0345, n=10)
    assert formatting.percent(-0.0001) == "0.0"
    assert formatting.percent(float("nan")) == formatting.percent(None) == "–"
    assert formatting.estimate(interval) == "1.2 (-1.0 to 3.5)"
    assert formatting.change(interval) == "-1.2 (-3.5 to +1.0)"
    assert [formatting.pluralize(n, "class") for n in (1, 2000)] == ["1 class", "2,000 classes"]
    assert [formatting.duration(s) for s in (59, 90, 7200)] == ["59 seconds", "1.5 minutes", "2.0 hours"]
    assert formatting.to_sentence("lost -3 points") == "Lost −3 points."
    assert formatting.flatten({"a": {"b": [1, None]}, "c": "f" * 64}) == [("a · b", "1, –"), ("c", f"{'f' * 16}…")]


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
    assert "(1 seed)" in text
    assert "±" not in text
    assert "needs at least three" in text
    assert report.summarize_comparison(comparison).to_lines()[4].endswith("out --task colour --seeds 3")


def test_missing_old_data(pages: dict[str, str]) -> None:
    assert "Forgetting on make is unknown" in pages["blind"]
    assert "is only a proxy" in pages["blind"]
    assert "--old-val DIR" in pages["blind"]
    lines = report.summarize_run(fake_record(with_old=False)).to_lines()
    assert "make not measured (no old validation images); no Score" in lines[0]
    assert "forgetting of make unknown" in lines[1]
    assert "only a proxy" in lines[1]
    assert lines[4].endswith("taskgraft extend alice bob-photos out-measured --task colour --old-val DIR")
    comparison = fake_comparison(3, with_old=False)
    assert "proxy" in report.summarize_comparison(comparison).result
    assert "--old-val DIR" in report.format_comparison_table(comparison)


@pytest.mark.parametrize(
    "summary",
    [
        report.summarize_run(fake_record()),
        report.summarize_run(fake_record(with_old=False, separate=None)),
        report.summarize_run(first_task()),
        report.summarize_comparison(fake_comparison(3)),
        report.summarize_comparison(fake_comparison(1)),
        report.summarize_comparison(fake_comparison(1).model_copy(update={"variants": ()})),
    ],
)
def test_summary_has_five_printable_lines(summary: Summary) -> None:
    lines = summary.to_lines()
    assert len(lines) == 5
    assert all(line and line.isprintable() for line in lines)


def test_result_line() -> None:
    record = fake_record()
    make, color = record.tasks
    assert make.forgetting
    assert make.child
    assert color.child
    assert record.score
    lost, low, high = make.forgetting.mean, make.forgetting.low, make.forgetting.high
    assert report.summarize_run(record).result == (
        f"make 87.0 → {100 * make.child.mean:.1f} ({-100 * lost:.1f}, 95 % CI {-100 * high:.1f} to "
        f"{-100 * low:.1f}); colour {100 * color.child.mean:.1f}; Score {100 * record.score:.1f} at step {record.step}"
    )


def test_comparison_names_the_best_baseline(comparison: Comparison) -> None:
    assert (
        "best fine-tuning baseline (Baseline (low rate), other settings)"
        in report.summarize_comparison(comparison).judgement
    )


def test_terminal_escapes_are_removed() -> None:
    record = fake_record()
    task = record.tasks[1].model_copy(update={"name": "colour\x1b[2J\nworked"})
    lines = report.summarize_run(record.model_copy(update={"tasks": (record.tasks[0], task)})).to_lines()
    assert all(line.isprintable() for line in lines)


def test_first_task_has_nothing_to_forget() -> None:
    record = first_task()
    lines = report.summarize_run(record).to_lines()
    assert "proxy" not in " ".join(lines)
    assert lines[4].endswith("taskgraft extend alice DATA alice-extended --task NAME")
    assert "old validation images" not in report.render_run(record, {})


def test_model_card() -> None:
    text = report.format_model_card(fake_record())
    assert text.startswith("---\nlibrary_name: timm\n")
    assert f"| make | {len(MAKES)} | 87.0 (" in text
    assert "library_name: taskgraft" in report.format_model_card(
        fake_record().model_copy(update={"one_backbone": False})
    )
