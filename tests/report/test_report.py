"""The report from made-up records: true to its numbers, inert to hostile names, the same every time."""

import math
import re
import subprocess
import sys
from base64 import b64encode
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from made_up import (
    COLORS,
    HOSTILE,
    MAKES,
    Reader,
    made_up_comparison,
    made_up_record,
    made_up_sets,
)
from taskgraft import metrics, report
from taskgraft.results.record import StepMetrics


@pytest.fixture(scope="module")
def comparison():
    return made_up_comparison()


@pytest.fixture(scope="module")
def compared(comparison):
    return report.render_comparison(comparison)


@pytest.fixture(scope="module")
def run_page():
    return report.render_run(made_up_record(), made_up_sets())


PICTURE = "data:image/jpeg;base64,AAAA"


def hostile_ancestor():
    parent = {"source": HOSTILE[0], "tasks": [HOSTILE[2]], "digest": HOSTILE[1]}
    return {"parent": parent, "method": HOSTILE[1], "task": HOSTILE[0], "accuracy": {HOSTILE[2]: 0.5}}


def hostile_record():
    record = made_up_record()
    old, new = (*HOSTILE, *MAKES), (*HOSTILE, *COLORS)
    tasks = (
        record.tasks[0].model_copy(update={"classes": old}),
        record.tasks[1].model_copy(update={"classes": new}),
    )
    more = {
        "notes": HOSTILE,
        "tasks": tasks,
        "command": HOSTILE[1],
        "choices": ((HOSTILE[0], HOSTILE[1], HOSTILE[2]),),
        "parent": {"source": f"/{HOSTILE[2]}", "architecture": HOSTILE[0], "lineage": [hostile_ancestor()]},
    }
    return record.model_copy(update=more), made_up_sets(old, new, names=HOSTILE[1])


def hostile_comparison():
    made = made_up_comparison(2)
    first = made.variants[0].model_copy(update={"label": HOSTILE[1], "method": HOSTILE[0]})
    record = made.variants[1].records[0]
    renamed = tuple(task.model_copy(update={"name": HOSTILE[1]}) for task in record.tasks[:1])
    line = StepMetrics(step=20, terms={HOSTILE[1]: 1.0}, accuracy={HOSTILE[1]: 0.5, "colour": 0.5})
    record = record.model_copy(update={"tasks": (*renamed, record.tasks[1]), "history": (line,)})
    second = made.variants[1].model_copy(update={"records": (record,)})
    return made.model_copy(
        update={"title": HOSTILE[0], "arrangements": (first, second), "failures": ((HOSTILE[1], HOSTILE[0]),)}
    )


@pytest.mark.parametrize("kind", ["config", "comparison", "images"])
def test_hostile_names_are_inert(kind):
    if kind == "comparison":
        page = report.render_comparison(hostile_comparison())
    else:
        page = report.render_run(*hostile_record(), *([lambda key, row: PICTURE] if kind == "images" else []))
    reader = Reader(page)
    assert len(reader.scripts) == 1  # ours: nothing that a name brought
    assert "alert(" not in reader.scripts[0]
    sources = [attrs.get("src") for tag, attrs in reader.tags if tag == "img"]
    assert set(sources) == ({PICTURE} if kind == "images" else set())
    assert not [attrs for _, attrs in reader.tags if any(name.startswith("on") for name in attrs)]
    assert any("<script>alert(" in text for text in reader.text)  # shown, as text


def test_nothing_is_loaded_from_outside(run_page, compared):
    for page in (run_page, compared):
        reader = Reader(page)
        for tag, attrs in reader.tags:
            assert tag not in ("link", "iframe", "object", "embed", "base")
            assert not attrs.get("src")
            assert (attrs.get("href") or "#").startswith("#")
        policy = next(attrs["content"] for _, attrs in reader.tags if attrs.get("http-equiv"))
        allowed = b64encode(sha256(reader.scripts[0].encode()).digest()).decode()
        assert policy.startswith(f"default-src 'none'; script-src 'sha256-{allowed}'; ")
        assert not re.search("http://|https://|@import", page)
        assert len(page.encode()) < 1_500_000


def test_equal_records_give_equal_pages(comparison, compared, run_page):
    assert report.render_comparison(comparison) == compared
    assert report.render_run(made_up_record(), made_up_sets()) == run_page


def test_the_tables_numbers_are_those_of_the_records(comparison, compared):
    rows = Reader(compared).table("Score_A is accuracy on make")
    for variant, row in zip(comparison.variants, rows[1:], strict=True):
        old = [record.tasks[0].child.mean for record in variant.records]
        new = [record.tasks[1].child.mean for record in variant.records]
        scores = [record.score for record in variant.records]
        lost = [record.tasks[0].parent.mean - a for record, a in zip(variant.records, old, strict=True)]
        gaps = [
            metrics.gap(score, {"make": 0.87, "colour": alone})
            for score, alone in zip(scores, comparison.separate["colour"], strict=True)
        ]
        expected = [_words(values) for values in (scores, old, new, lost, gaps)]
        assert [cell.replace("−", "-") for cell in row[1:6]] == expected
        assert row[0] == variant.label
    assert 'class="best"' in compared


def _words(values):
    mean, half = metrics.t_interval(values)
    return f"{100 * mean:.1f} ± {100 * half:.1f}"


def test_the_best_is_bold_and_markdown_agrees_with_the_page(comparison, compared):
    lines = report.table_markdown(comparison).splitlines()
    bold = [line for line in lines if line.startswith("| **")]
    best = max(comparison.variants, key=lambda one: np.mean([record.score for record in one.records]))
    assert [line.split("|")[1].strip(" *") for line in bold] == [best.label]
    page_row = next(row for row in Reader(compared).table("Score_A is") if row[0] == best.label)
    assert [cell.strip(" *") for cell in bold[0].split("|")[2:7]] == [cell.replace("−", "-") for cell in page_row[1:6]]


def test_markdown_keeps_hostile_labels_in_their_cells():
    made = made_up_comparison(1)
    bad = made.variants[0].model_copy(update={"label": "a | b\n<script>alert(1)</script>"})
    text = report.table_markdown(made.model_copy(update={"arrangements": (bad, *made.variants[1:])}))
    assert "<script>" not in text
    assert r"a \| b &lt;script>" in text


def test_one_seed_gives_no_interval_and_asks_for_three():
    made = made_up_comparison(1)
    page, text = report.render_comparison(made), report.table_markdown(made)
    assert "(1 seed)" in page
    assert "±" not in text
    assert "three seeds are needed to compare" in page
    assert "three seeds are needed to compare" in text
    assert "--seeds 3" in report.verdict_comparison(made)[4]
    assert "out-3-seeds" in report.verdict_comparison(made)[4]


def test_missing_old_data_is_said_plainly():
    record = made_up_record(with_old=False)
    page = report.render_run(record, made_up_sets(with_old=False))
    assert "Old accuracy is unknown for make" in page
    assert "It is a proxy" in page
    assert "--old-val DIR" in page
    lines = report.verdict_run(record)
    assert "accuracy on make unknown (no old validation images); no Score" in lines[0]
    assert "old accuracy is unknown" in lines[1]
    assert "proxy" in lines[1]
    assert lines[4].endswith("taskgraft extend alice bob-photos out-measured --task colour --old-val DIR")
    together = made_up_comparison(3, with_old=False)
    assert "proxy" in report.verdict_comparison(together)[0]
    assert "--old-val DIR" in report.table_markdown(together)
    assert "a proxy" in report.render_comparison(together)


def test_the_verdict_has_five_lines(comparison):
    for lines in (
        report.verdict_run(made_up_record()),
        report.verdict_run(made_up_record(with_old=False, separate=None)),
        report.verdict_comparison(comparison),
        report.verdict_comparison(made_up_comparison(1)),
        report.verdict_comparison(comparison.model_copy(update={"arrangements": ()})),
    ):
        assert len(lines) == 5
        assert all(line and line.isprintable() for line in lines)


def test_the_first_line_of_a_verdict():
    record = made_up_record()
    make, color = record.tasks
    assert make.forgetting
    assert make.child
    assert color.child
    assert record.score
    lost, low, high = make.forgetting.mean, make.forgetting.low, make.forgetting.high
    expected = (
        f"make 87.0 → {100 * make.child.mean:.1f} ({-100 * lost:.1f}, 95 % interval "
        f"{-100 * high:.1f} to {-100 * low:.1f}); colour {100 * color.child.mean:.1f}; "
        f"Score {100 * record.score:.1f} at step {record.step}"
    )
    assert report.verdict_run(record)[0] == expected


def test_a_verdict_cannot_steer_the_terminal():
    record = made_up_record()
    task = record.tasks[1].model_copy(update={"name": "colour\x1b[2J\nworked"})
    lines = report.verdict_run(record.model_copy(update={"tasks": (record.tasks[0], task)}))
    assert len(lines) == 5
    assert all(line.isprintable() for line in lines)


def test_headings_go_down_one_level_at_a_time(run_page, compared):
    for page in (run_page, compared):
        tags = Reader(page).tags
        levels = [int(tag[1]) for tag, _ in tags if re.fullmatch("h[1-6]", tag)]
        assert levels[0] == 1
        assert all(after - before <= 1 for before, after in pairwise(levels))
        assert sum(tag == "table" for tag, _ in tags) == sum(tag == "caption" for tag, _ in tags)
        assert all(attrs.get("scope") for tag, attrs in tags if tag == "th")
        drawings = [attrs for tag, attrs in tags if tag == "svg" and attrs.get("role") == "img"]
        assert drawings
        assert all(attrs["aria-label"] for attrs in drawings)
        names = [attrs["id"] for _, attrs in tags if "id" in attrs]
        assert len(names) == len(set(names))


def test_the_three_figures(comparison, compared, tmp_path):
    reader = Reader(compared)
    assert all(reader.charts(key) for key in ("figure1", "figure2", "figure3", "frontier-plot", "loss0", "loss6"))
    assert {"make (task A)", "colour (task B)", "parent"} <= set(reader.words("figure1"))
    line = comparison.variants[0].records
    for task, name in (("make", "make (task A)"), ("colour", "colour (task B)")):
        expected = np.mean([[one.accuracy[task] for one in record.history] for record in line], axis=0)
        said = [
            f"{name}, step {at.step}: {100 * mean:.1f} %" for at, mean in zip(line[0].history, expected, strict=True)
        ]
        assert [text for text in reader.told("figure1") if text.startswith(name)] == said
    assert any(text.startswith("make, parent's training, step -600:") for text in reader.told("figure3"))
    paths = report.write_figures(comparison, tmp_path)
    assert [path.name for path in paths] == ["figure1.png", "figure2.png", "figure3.png"]
    first = [path.read_bytes() for path in paths]
    assert all(content.startswith(b"\x89PNG") for content in first)
    assert [path.read_bytes() for path in report.write_figures(comparison, tmp_path)] == first


def test_figures_without_data_are_left_out(comparison, tmp_path):
    without = comparison.model_copy(update={"arrangements": comparison.variants[2:]})
    assert [path.name for path in report.write_figures(without, tmp_path)] == ["figure3.png"]
    one = comparison.model_copy(update={"arrangements": comparison.variants[:1]})
    assert [path.name for path in report.write_figures(one, tmp_path)] == ["figure1.png", "figure3.png"]


def test_names_that_matplotlib_reads_are_drawn_as_they_are(comparison, tmp_path):
    labels = ("$\\bad{", "_hidden", "漢字")
    variants = tuple(
        one.model_copy(update={"label": label}) for one, label in zip(comparison.variants, labels, strict=False)
    )
    assert len(report.write_figures(comparison.model_copy(update={"arrangements": variants}), tmp_path)) == 3


def test_many_classes_give_a_table_of_confusions():
    many = tuple(f"make {i}" for i in range(60))
    record = made_up_record()
    record = record.model_copy(
        update={"tasks": (record.tasks[0].model_copy(update={"classes": many}), record.tasks[1])}
    )
    reader = Reader(report.render_run(record, made_up_sets(old=many)))
    assert len(reader.table("make: the 20 most frequent confusions")) == 21
    assert not reader.charts("confusion0")
    assert reader.charts("confusion1")


def test_images_that_went_from_right_to_wrong(run_page):
    sets = made_up_sets()
    was = metrics.predicted_classes(sets["old-parent"], "make") == sets["old"].labels["make"]
    now = metrics.predicted_classes(sets["old"], "make") == sets["old"].labels["make"]
    expected = [name for name, a, b in zip(sets["old"].ids, was, now, strict=True) if a and not b]
    assert [row[0] for row in Reader(run_page).table("make: right before, wrong now")[1:]] == expected[:200]


def test_a_run_that_diverged_still_has_a_page():
    record = made_up_record()
    broken = record.history[0].model_copy(update={"terms": {"cross-entropy": math.nan, "ewc": math.inf}})
    page = report.render_run(record.model_copy(update={"history": (broken, *record.history[1:])}), {})
    assert "nan" not in " ".join(str(one.attrib) for one in Reader(page).charts("loss")[0].iter()).lower()


def test_importing_the_report_loads_no_drawing_library():
    heavy = ("torch", "matplotlib", "jinja2")
    code = f"import sys, taskgraft.report; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_templates_travel_with_the_package():
    folder = Path(report.__file__).parent / "templates"
    assert {path.name for path in folder.iterdir()} >= {"page.html.j2", "blocks.html.j2"}


def test_a_first_task_has_a_page_too():
    made = made_up_record()
    first = made.tasks[0].model_copy(update={"new": True, "parent": None, "forgetting": None, "agreement": None})
    record = made.model_copy(
        update={
            "command": "taskgraft train cars alice --task make",
            "tasks": (first,),
            "parameters": {"parent": 0, "child": 11_000_000, "added": 11_000_000},
        }
    )
    lines = report.verdict_run(record)
    assert len(lines) == 5
    assert "proxy" not in " ".join(lines)
    assert lines[4].endswith("taskgraft extend alice DATA alice-extended --task NAME")
    assert "old validation images" not in report.render_run(record, {"new": made_up_sets()["old"]})


def test_excluded_images_are_listed_with_their_reasons(run_page):
    assert Reader(run_page).table("new: 1 excluded image")[1] == ["x.jpg", "truncated"]


def test_the_next_command_after_a_comparison_with_folders(comparison):
    kept = tuple(one.model_copy(update={"folders": ("best one/seed-0",)}) for one in comparison.variants)
    line = report.verdict_comparison(comparison.model_copy(update={"arrangements": kept}))[4]
    assert line.endswith("taskgraft predict 'out/best one/seed-0' IMAGES")
