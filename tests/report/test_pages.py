"""Pages: true to their records, inert to hostile names, self-contained, reproducible."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fake_results import COLORS, HOSTILE, MAKES, PageReader, fake_comparison, fake_record, fake_sets
from forks import run_cli
from taskgraft import metrics, report
from taskgraft.commands.evaluate import evaluate
from taskgraft.errors import TaskgraftError
from taskgraft.report import charts
from taskgraft.report.sample_strip import build_sample_strip
from taskgraft.report.thumbnails import no_thumbnail
from taskgraft.results.record import Comparison, Record, StepMetrics

MAX_BYTES = 1_500_000
IMAGE = "data:image/jpeg;base64,AAAA"


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return fake_comparison()


@pytest.fixture
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures alone: the charts of the page take longer."""
    monkeypatch.setattr(charts, "render_svg", lambda *args: "<svg></svg>")


@pytest.fixture
def run(forgetful: Path, tmp_path: Path) -> Path:
    """A copy of a real run, to change."""
    return shutil.copytree(forgetful, tmp_path / "run")


def rebuild(run: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "taskgraft.cli", "report", str(run)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def hostile_run(get_thumbnail) -> str:
    record = fake_record()
    old, new = (*HOSTILE, *MAKES), (*HOSTILE, *COLORS)
    ancestor = {
        "parent": {"source": HOSTILE[0], "tasks": [HOSTILE[2]], "digest": HOSTILE[1]},
        "method": HOSTILE[1],
        "task": HOSTILE[0],
        "accuracy": {HOSTILE[2]: 0.5},
    }
    record = record.model_copy(update={
        "notes": HOSTILE,
        "tasks": tuple(
            task.model_copy(update={"classes": names}) for task, names in zip(record.tasks, (old, new), strict=True)
        ),
        "command": HOSTILE[1],
        "settings": ((HOSTILE[0], HOSTILE[1], HOSTILE[2]),),
        "parent": {"source": f"/{HOSTILE[2]}", "architecture": HOSTILE[0], "lineage": [ancestor]},
    })  # fmt: skip
    return report.render_run(record, fake_sets(old, new, names=HOSTILE[1]), get_thumbnail)


def hostile_comparison() -> str:
    comparison = fake_comparison(2)
    first = comparison.variants[0].model_copy(update={"label": HOSTILE[1], "method": HOSTILE[0]})
    record = comparison.variants[1].records[0]
    task = record.tasks[0].model_copy(update={"name": HOSTILE[1]})
    line = StepMetrics(step=20, terms={HOSTILE[1]: 1.0}, accuracy={HOSTILE[1]: 0.5, "colour": 0.5})
    record = record.model_copy(update={"tasks": (task, record.tasks[1]), "history": (line,)})
    second = comparison.variants[1].model_copy(update={"records": (record,)})
    failures = ((HOSTILE[1], HOSTILE[0]),)
    return report.render_comparison(
        comparison.model_copy(update={"title": HOSTILE[0], "variants": (first, second), "failures": failures})
    )


@pytest.mark.parametrize(
    ("render", "images"),
    [(lambda: hostile_run(lambda name, row: IMAGE), {IMAGE}), (hostile_comparison, set())],
    ids=["run", "comparison"],
)
def test_hostile_names_are_inert(render, images: set[str]) -> None:
    reader = PageReader(render())
    assert len(reader.scripts) == 1
    assert "alert(" not in reader.scripts[0]
    assert {attrs.get("src") for attrs in reader.images()} == images
    assert not [attrs for _, attrs in reader.tags if any(name.startswith("on") for name in attrs)]
    assert any("<script>alert(" in text for text in reader.text)


@pytest.mark.parametrize("name", ["run", "comparison", "search"])
def test_page_is_self_contained(pages: dict[str, str], name: str) -> None:
    reader = PageReader(pages[name])
    for tag, attrs in reader.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        assert not attrs.get("src")
        assert (attrs.get("href") or "#").startswith("#")
    policy = next(attrs["content"] for _, attrs in reader.tags if attrs.get("http-equiv"))
    script = base64.b64encode(hashlib.sha256(reader.scripts[0].encode()).digest()).decode()
    assert policy.startswith(f"default-src 'none'; script-src 'sha256-{script}'; ")
    assert not re.search("http://|https://|@import", pages[name])


@pytest.mark.parametrize("name", ["run", "comparison", "search"])
def test_page_structure_is_accessible(pages: dict[str, str], name: str) -> None:
    tags = PageReader(pages[name]).tags
    levels = [int(tag[1]) for tag, _ in tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert sum(tag == "table" for tag, _ in tags) == sum(tag == "caption" for tag, _ in tags)
    assert all(attrs.get("scope") for tag, attrs in tags if tag == "th")
    assert all(attrs["aria-label"] for tag, attrs in tags if tag == "svg" and attrs.get("role") == "img")
    ids = [attrs["id"] for _, attrs in tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {attrs["aria-labelledby"] for tag, attrs in tags if tag == "section" and "id" in attrs} <= set(ids)
    assert [attrs["href"] for tag, attrs in tags if tag == "a"][1:] == [
        f"#{attrs['id']}" for tag, attrs in tags if tag == "section" and "id" in attrs
    ]


def test_rendering_is_reproducible(pages: dict[str, str]) -> None:
    blind = report.render_run(fake_record(with_old=False), fake_sets(with_old=False))
    assert blind == pages["blind"]


def test_reference_figures(comparison: Comparison, pages: dict[str, str], compared: Path) -> None:
    reader = PageReader(pages["comparison"])
    assert {"make (task A)", "colour (task B)", "parent (before)"} <= set(reader.chart_texts("figure1"))
    records = comparison.variants[0].records
    for task, name in (("make", "make (task A)"), ("colour", "colour (task B)")):
        means = np.mean([[line.accuracy[task] for line in record.history] for record in records], axis=0)
        expected = [
            f"{name}, step {line.step}: {100 * mean:.1f} %"
            for line, mean in zip(records[0].history, means, strict=True)
        ]
        assert [text for text in reader.tooltips("figure1") if text.startswith(name)] == expected
    assert any(text.startswith("make, parent's training, step -600:") for text in reader.tooltips("figure3"))
    paths = sorted(compared.glob("*.png"))
    assert [path.name for path in paths] == ["figure1.png", "figure2.png", "figure3.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


@pytest.mark.parametrize(
    ("kept", "names"), [(slice(2, None), ["figure3.png"]), (slice(1), ["figure1.png", "figure3.png"])]
)
@pytest.mark.usefixtures("no_page")
def test_figures_without_data_are_left_out(
    comparison: Comparison, kept: slice, names: list[str], tmp_path: Path
) -> None:
    some = comparison.model_copy(update={"variants": comparison.variants[kept]})
    report.write_comparison_report(some, tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*.png")) == names


def test_many_classes_give_a_table_of_confusions() -> None:
    many = tuple(f"make {i}" for i in range(60))
    record = fake_record()
    old = record.tasks[0].model_copy(update={"classes": many})
    record = record.model_copy(update={"tasks": (old, record.tasks[1])})
    reader = PageReader(report.render_run(record, fake_sets(old=many)))
    assert len(reader.table("make: the 20 most frequent confusions")) == 21
    assert not reader.charts("confusion0")
    assert reader.charts("confusion1")


def test_negative_flips_are_listed(pages: dict[str, str]) -> None:
    sets = fake_sets()
    labels = sets["old"].labels["make"]
    before, after = (metrics.predicted_classes(sets[name], "make") == labels for name in ("old-parent", "old"))
    expected = [name for name, was, now in zip(sets["old"].ids, before, after, strict=True) if was and not now]
    rows = PageReader(pages["run"]).table("make: negative flips (right before, wrong now)")[1:]
    assert [row[0] for row in rows] == expected[:200]


def test_samples_are_at_even_intervals_with_the_answers_of_both_tasks() -> None:
    sets = fake_sets()
    sets["old"].labels["make"][:] = -1  # then the parent's answers stand in for labels
    strip = build_sample_strip(sets, ["make", "colour"], lambda name, row: f"{name} {row}")
    assert [image.source for image in strip] == [
        *(f"new {row}" for row in (50, 150, 250, 350)), *(f"old {row}" for row in (62, 187, 312, 437)),
    ]  # fmt: skip
    for image in strip:
        name, row = image.source.split()
        for answer in image.answers:
            child, parent = (int(sets[key].logits[answer.task][int(row)].argmax()) if answer.task in sets[key].logits
                             else None for key in (name, f"{name}-parent"))  # fmt: skip
            classes = MAKES if answer.task == "make" else COLORS
            assert answer.predicted == classes[child or 0]
            if (name, answer.task) == ("new", "colour"):
                truth = COLORS[sets["new"].labels["colour"][int(row)]]
                right = answer.predicted == truth
                expected = ("right", "") if right else ("wrong", f"true: {truth}")
            else:
                expected = ("", f"parent: {classes[parent]}" if parent not in (None, child) else "")
            assert (answer.verdict, answer.note) == expected
    assert not build_sample_strip(sets, ["make", "colour"], no_thumbnail)


def test_diverged_run_has_a_page() -> None:
    record = fake_record()
    broken = record.history[0].model_copy(update={"terms": {"cross-entropy": math.nan, "ewc": math.inf}})
    page = report.render_run(record.model_copy(update={"history": (broken, *record.history[1:])}), {})
    assert "nan" not in " ".join(str(one.attrib) for one in PageReader(page).charts("loss")[0].iter()).lower()


def test_excluded_images_are_listed(pages: dict[str, str]) -> None:
    assert PageReader(pages["run"]).table("new: 1 excluded image")[1] == ["x.jpg", "truncated"]


def test_lineage() -> None:
    digests = ["1" * 64, "2" * 64, "3" * 64]
    step = {"method": "train", "task": "make", "accuracy": {"make": 0.9}}
    lineage = [
        {"parent": {"source": "resnet18", "architecture": "resnet18", "tasks": [], "digest": digests[0]}, **step},
        {"parent": {"source": "runs/alice", "architecture": "resnet18", "tasks": ["make"], "digest": digests[1]},
         "method": "ewc(strength=3)", "task": "size", "accuracy": {"make": 0.85, "size": 0.7}},
    ]  # fmt: skip
    parent = {"source": "runs/both", "digest": digests[2], "architecture": "resnet18", "tasks": ["make", "size"]}
    record = fake_record().model_copy(update={"parent": {**parent, "lineage": lineage}})
    reader = PageReader(report.render_run(record.model_copy(update={"history": ()}), {}))
    steps = ("resnet18: no task yet", "Learned make", "saved as alice", "Learned size",
             "with ewc(strength=3): make 85.0 %, size 70.0 %", "saved as both",
             "Learned colour (this run)")  # fmt: skip
    positions = [reader.plain_text.index(text) for text in steps]
    assert positions == sorted(positions)
    assert all(f"SHA-256 {digest[:16]}…" in reader.plain_text for digest in digests)
    rows = reader.table("Accuracy (%) of each task after each step")
    assert rows[0] == ["Task", "after make", "after size", "after colour"]
    assert rows[1][:3] == ["make", "90.0", "85.0"]
    assert rows[2] == ["size", "–", "70.0", "–"]


def test_import_is_light() -> None:
    heavy = ("torch", "matplotlib", "jinja2", "PIL")
    code = f"import sys, taskgraft.report; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---- a real run ------------------------------------------------------------------------------------------------


def test_run_page_has_all_sections(forgetful: Path) -> None:
    page = (forgetful / "report.html").read_text(encoding="utf-8")
    reader, record = (
        PageReader(page),
        Record.model_validate_json((forgetful / "record.json").read_text(encoding="utf-8")),
    )
    assert len(page.encode()) < MAX_BYTES
    assert [attrs["id"] for tag, attrs in reader.tags if tag == "section" and "id" in attrs] == [
        "samples", "tasks", "curves", "errors", "flips", "calibration", "lineage", "settings", "data", "reproduce",
    ]  # fmt: skip
    assert {"Result", "Accuracy", "Cost", "Next step"} <= {text.strip() for text in reader.text}
    for task in record.tasks:
        assert task.child
        assert f"after {100 * task.child.mean:.1f} %" in reader.plain_text
    assert record.tasks[0].parent
    assert f"before {100 * record.tasks[0].parent.mean:.1f} %" in reader.plain_text
    assert all(0 < value < 5 for value in record.latency.values())
    latency = f"{1000 * record.latency['parent']:.1f} ms → {1000 * record.latency['child']:.1f} ms"
    assert latency in reader.plain_text
    assert {name for line in record.history for name in line.terms} <= set(reader.chart_texts("loss"))
    columns = reader.table("Expected calibration error")[0][2:5]
    assert columns == ["Parent (points)", "Child (points)", "Calibrated (points)"]
    assert reader.table("SHA-256 of all inputs")[1] == ["parent", record.parent["digest"]]


def test_thumbnails_show_the_named_images(forgetful: Path, new_folder: Path, old_folder: Path) -> None:
    tasks = set()
    for attrs in PageReader((forgetful / "report.html").read_text(encoding="utf-8")).images():
        name, text = attrs["alt"].split(": ", 1)
        assert re.fullmatch(r"(true .+, (predicted|now) .+|before .+, true .+|shape .+, paint .+)", text), text
        small = Image.open(io.BytesIO(base64.b64decode(attrs["src"].removeprefix("data:image/jpeg;base64,"))))
        assert max(small.size) <= 128
        folders = {"paint": new_folder, "shape": old_folder}
        files = [path for root in folders.values() for path in (root / "val" / name, root / name) if path.is_file()]
        mean = np.asarray(small, float).mean((0, 1))
        means = [np.asarray(Image.open(path).convert("RGB"), float).mean((0, 1)) for path in files]
        assert min(np.abs(one - mean).max() for one in means) < 6  # JPEG is slightly off on noise
        tasks |= {task for task, root in folders.items() if any(path.is_relative_to(root) for path in files)}
    assert tasks == {"paint", "shape"}


def test_stored_thumbnails_are_those_shown(forgetful: Path) -> None:
    stored = json.loads((forgetful / "thumbnails.json").read_text(encoding="utf-8"))
    shown = {attrs["src"] for attrs in PageReader((forgetful / "report.html").read_text(encoding="utf-8")).images()}
    assert {uri for images in stored.values() for uri in images.values()} == shown


@pytest.mark.slow
def test_page_can_be_rebuilt(run: Path) -> None:
    before = (run / "report.html").read_bytes()
    (run / "report.html").unlink()
    assert rebuild(run).returncode == 0
    assert (run / "report.html").read_bytes() == before
    (run / "thumbnails.json").unlink()
    run_cli("report", run, check=True)
    assert not PageReader((run / "report.html").read_text(encoding="utf-8")).images()


@pytest.mark.parametrize(
    "content", ["{", "[1]", '{"old": {"1": "http://x.test/"}}', '{"old": {"x": "data:image/jpeg;base64,AAAA"}}']
)
def test_damaged_thumbnails_are_refused(run: Path, content: str) -> None:
    (run / "thumbnails.json").write_text(content, encoding="utf-8")
    with pytest.raises(TaskgraftError, match=r"thumbnails\.json is damaged; delete it"):
        report.load_thumbnails(run)


def test_report_refuses_damaged_thumbnails(run: Path) -> None:
    before = (run / "report.html").read_bytes()
    (run / "thumbnails.json").write_text("{", encoding="utf-8")
    done = run_cli("report", run)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"taskgraft: .*thumbnails\.json is damaged; delete it .*\n", done.stderr)
    assert (run / "report.html").read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("tasks", [12, 80])
def test_page_size_is_bounded(tasks: int) -> None:
    """With thumbnails of noise, the largest there are."""
    rng, record, sets = np.random.default_rng(0), fake_record(), fake_sets(old_right=0.3)
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (128, 128, 3), dtype=np.uint8)).save(file, format="JPEG", quality=75)
    noise = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
    names = [f"make{i}" for i in range(tasks)]
    for key in ("old", "old-parent"):
        fields = {field: getattr(sets[key], field)["make"] for field in ("classes", "labels", "logits")}
        sets[key] = sets[key]._replace(**{field: dict.fromkeys(names, value) for field, value in fields.items()})
    old = tuple(record.tasks[0].model_copy(update={"name": name}) for name in names)
    page = report.render_run(
        record.model_copy(update={"tasks": (*old, record.tasks[1])}), sets, lambda name, row: noise
    )
    assert len(page.encode()) < MAX_BYTES
    assert 0 < len(PageReader(page).images()) <= 60


def test_evaluation_page(forgetful: Path, new_folder: Path, tmp_path: Path) -> None:
    html = tmp_path / "pages" / "colors.html"
    result = evaluate(str(forgetful), new_folder, html=html)
    reader = PageReader(html.read_text(encoding="utf-8"))
    assert f"{100 * result['accuracy']:.1f} %" in reader.plain_text
    assert f"{100 * result['calibration_error']:.1f} points" in reader.plain_text
    assert [(row[0], row[2]) for row in reader.table("paint: lowest class accuracies")[1:]] == [
        (name, f"{100 * accuracy:.1f}") for name, accuracy, _ in result["worst"]
    ]
    assert reader.images()
    assert "Parent" not in reader.plain_text
    with pytest.raises(TaskgraftError, match="cannot be written"):
        evaluate(str(forgetful), new_folder, html=html / "x.html")


def test_foreign_files_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine.html").write_text("mine", encoding="utf-8")
    with pytest.raises(TaskgraftError, match="is not a taskgraft page"):
        report.write_page(tmp_path / "mine.html", "<p>")
    assert (tmp_path / "mine.html").read_text(encoding="utf-8") == "mine"
