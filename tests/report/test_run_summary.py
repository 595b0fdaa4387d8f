"""The summary of a run: five true lines for the terminal, its formatting and its model card."""

from __future__ import annotations

import pytest

from fake_results import MAKES, fake_record
from taskgraft import report
from taskgraft.report import formatting
from taskgraft.report.run_summary import Summary
from taskgraft.results.record import Interval, Record


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


def test_a_significant_loss_is_named_before_a_larger_one_that_may_be_chance() -> None:
    record = fake_record()
    old, new = record.tasks
    losses = {
        "few": Interval(mean=0.08, low=-0.01, high=0.16, n=40),
        "many": Interval(mean=0.05, low=0.02, high=0.09, n=400),
    }
    tasks = [old.model_copy(update={"name": name, "forgetting": loss}) for name, loss in losses.items()]
    summary = report.summarize_run(record.model_copy(update={"tasks": (*tasks, new)}))
    assert summary.judgement == "significant forgetting: many lost 5.0 points"


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


def test_missing_old_data(pages: dict[str, str]) -> None:
    assert "Forgetting on make is unknown" in pages["blind"]
    assert "is only a proxy" in pages["blind"]
    assert "--old-val DIR" in pages["blind"]
    lines = report.summarize_run(fake_record(with_old=False)).to_lines()
    assert "make not measured (no old validation images); no Score" in lines[0]
    assert "forgetting of make unknown" in lines[1]
    assert "only a proxy" in lines[1]
    assert lines[4].endswith("taskgraft extend alice bob-photos out-measured --task colour --old-val DIR")


@pytest.mark.parametrize(
    "summary",
    [
        report.summarize_run(fake_record()),
        report.summarize_run(fake_record(with_old=False, separate=None)),
        report.summarize_run(first_task()),
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
