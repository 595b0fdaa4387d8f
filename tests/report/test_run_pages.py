"""The page of a real run, small as it is: every part is there, with images, and can be written again."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from made_up import Reader, made_up_record, made_up_sets
from taskgraft import report
from taskgraft.commands.evaluate import evaluate
from taskgraft.errors import TaskgraftError
from taskgraft.results.record import Record

BOUND = 1_500_000  # bytes
SECTIONS = {"tasks", "curves", "answers", "changes", "reliability", "lineage", "settings", "data", "repeat"}


@pytest.fixture
def run(forgetful: Path, tmp_path: Path) -> Path:
    """A copy of it, to change."""
    return shutil.copytree(forgetful, tmp_path / "config")


def rewritten(config: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "taskgraft.cli", "report", str(config)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def pictures(page: str) -> list[dict[str, str]]:
    return [attrs for tag, attrs in Reader(page).tags if tag == "img"]


def test_every_part_is_there(forgetful: Path) -> None:
    text = (forgetful / "report.html").read_text(encoding="utf-8")
    reader, record = Reader(text), Record.model_validate_json((forgetful / "record.json").read_text(encoding="utf-8"))
    said = " ".join(" ".join(reader.text).split())
    assert len(text.encode()) < BOUND
    assert {attrs.get("id") for tag, attrs in reader.tags if tag == "section"} >= SECTIONS
    for question in ("Did it work?", "How good is it?", "What did it cost?", "What next?"):
        assert question in said
    for task in record.tasks:  # the first screen has every task, before and now
        assert task.child
        assert f"now {100 * task.child.mean:.1f} %" in said
    assert record.tasks[0].parent
    assert f"before {100 * record.tasks[0].parent.mean:.1f} %" in said
    assert set(record.latency) == {"child", "parent"}
    assert all(0 < value < 5 for value in record.latency.values())
    assert f"{1000 * record.latency['parent']:.1f} ms → {1000 * record.latency['child']:.1f} ms" in said
    terms = {name for line in record.history for name in line.terms}
    assert terms <= set(reader.words("loss"))
    assert reader.table("Expected calibration error")[0][2:5] == [
        "Parent (points)", "Child (points)", "Calibrated (points)",
    ]  # fmt: skip
    assert "learnt paint, this run" in said
    assert reader.table("SHA-256 of everything")[1][0] == "parent"
    assert record.parent["digest"] in said


def test_the_pictures_are_those_that_are_named(forgetful: Path, new_folder: Path, old_folder: Path) -> None:
    shown = pictures((forgetful / "report.html").read_text(encoding="utf-8"))
    assert shown
    places = {"paint": new_folder, "shape": old_folder}
    seen = set()
    for one in shown:
        name, said = one["alt"].split(": ", 1)
        assert re.search(r"true .+, (answer|now) .+|before .+, true .+", said), said
        kind, data = one["src"].split(",", 1)
        assert kind == "data:image/jpeg;base64"
        small = Image.open(io.BytesIO(base64.b64decode(data)))
        assert max(small.size) <= 128
        files = [path for root in places.values() for path in (root / "val" / name, root / name) if path.is_file()]
        assert files, name
        means = [np.asarray(picture.convert("RGB"), float).mean((0, 1)) for picture in map(Image.open, files)]
        mean = np.asarray(small, float).mean((0, 1))
        assert min(np.abs(one - mean).max() for one in means) < 6  # JPEG is a little off where there is noise
        seen |= {task for task, root in places.items() if any(path.is_relative_to(root) for path in files)}
    assert seen == {"paint", "shape"}


def test_a_page_is_written_again_with_and_without_pictures(config: Path) -> None:
    before = (config / "report.html").read_bytes()
    (config / "report.html").unlink()
    assert rewritten(config).returncode == 0
    assert (config / "report.html").read_bytes() == before
    (config / "thumbnails.json").unlink()
    assert rewritten(config).returncode == 0
    assert pictures(before.decode())
    assert not pictures((config / "report.html").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "content", ["{", "[1]", '{"old": {"1": "http://x.test/"}}', '{"old": {"x": "data:image/jpeg;base64,AAAA"}}']
)
def test_damaged_pictures_are_told(config: Path, content: str) -> None:
    before = (config / "report.html").read_bytes()
    (config / "thumbnails.json").write_text(content, encoding="utf-8")
    done = rewritten(config)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"taskgraft: .*thumbnails\.json is damaged; delete it .*\n", done.stderr)
    assert (config / "report.html").read_bytes() == before


@pytest.mark.parametrize("tasks", [1, 12, 80])
def test_a_page_stays_small_however_many_tasks_there_are(tasks: int) -> None:
    """With images of noise, the largest that are written, for each that is asked for."""
    rng, record, sets = np.random.default_rng(0), made_up_record(), made_up_sets(old_right=0.3)
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (128, 128, 3), dtype=np.uint8)).save(file, format="JPEG", quality=75)
    noise = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
    names = [f"make{i}" for i in range(tasks)]
    old = tuple(record.tasks[0].model_copy(update={"name": name}) for name in names)
    for key in ("old", "old-parent"):
        one = sets[key]
        fields = {field: getattr(one, field)["make"] for field in ("classes", "labels", "logits")}
        sets[key] = one._replace(**{field: dict.fromkeys(names, value) for field, value in fields.items()})
    page = report.render_run(record.model_copy(update={"tasks": (*old, record.tasks[1])}), sets, lambda key, row: noise)
    assert len(page.encode()) < BOUND
    assert len(pictures(page)) <= 60
    assert pictures(page)


def test_a_chain_is_told_from_its_first_model() -> None:
    digests = ["1" * 64, "2" * 64, "3" * 64]
    step = {"method": "train", "task": "make", "accuracy": {"make": 0.9}}
    lineage = [
        {"parent": {"source": "resnet18", "architecture": "resnet18", "tasks": [], "digest": digests[0]}, **step},
        {"parent": {"source": "runs/alice", "architecture": "resnet18", "tasks": ["make"], "digest": digests[1]},
         "method": "ewc(strength=3)", "task": "size", "accuracy": {"make": 0.85, "size": 0.7}},
    ]  # fmt: skip
    parent = {"source": "runs/both", "digest": digests[2], "architecture": "resnet18", "tasks": ["make", "size"]}
    record = made_up_record().model_copy(update={"parent": {**parent, "lineage": lineage}})
    reader = Reader(report.render_run(record, made_up_sets()))
    said = " ".join(" ".join(reader.text).split())
    places = [said.index(text) for text in ("resnet18; no task yet", "learnt make", "kept as alice",
                                            "learnt size", "by ewc(strength=3): make 85.0 %, size 70.0 %",
                                            "kept as both", "learnt colour, this run")]  # fmt: skip
    assert places == sorted(places)
    assert all(f"SHA-256 {mark[:16]}…" in said for mark in digests)
    rows = reader.table("Accuracy (%) of each task after each step")
    assert rows[0] == ["Task", "after make", "after size", "after colour"]
    assert rows[1][:3] == ["make", "90.0", "85.0"]
    assert rows[2] == ["size", "–", "70.0", "–"]


def test_the_commands_that_follow_name_the_run() -> None:
    record = made_up_record()
    text = " ".join(" ".join(Reader(report.render_run(record, made_up_sets())).text).split())
    assert "taskgraft extend alice bob-photos out-again --task colour" in text
    assert "taskgraft evaluate out --verify" in text
    assert "taskgraft report out" in text
    unknown = record.model_copy(update={"command": "taskgraft.extend(…)"})
    assert "--verify" not in " ".join(Reader(report.render_run(unknown, made_up_sets())).text)


def test_what_is_kept_for_the_page_is_no_more_than_is_shown(forgetful: Path) -> None:
    kept = json.loads((forgetful / "thumbnails.json").read_text(encoding="utf-8"))
    shown = {one["src"] for one in pictures((forgetful / "report.html").read_text(encoding="utf-8"))}
    assert {uri for own in kept.values() for uri in own.values()} == shown


def test_an_evaluation_has_a_page_too(forgetful: Path, new_folder: Path, tmp_path: Path) -> None:
    found = evaluate(str(forgetful), new_folder, html=tmp_path / "pages" / "colours.html")
    text = (tmp_path / "pages" / "colours.html").read_text(encoding="utf-8")
    reader = Reader(text)
    said = " ".join(" ".join(reader.text).split())
    assert f"{100 * found['accuracy']:.1f} %" in said
    assert f"{100 * found['calibration_error']:.1f} points off" in said
    assert [(row[0], row[2]) for row in reader.table("paint: worst classes")[1:]] == [
        (name, f"{100 * share:.1f}") for name, share, _ in found["worst"]
    ]
    assert pictures(text)
    assert "Parent" not in said
    (tmp_path / "mine.html").write_text("mine", encoding="utf-8")
    with pytest.raises(TaskgraftError, match="is no page of taskgraft"):
        evaluate(str(forgetful), new_folder, html=tmp_path / "mine.html")
    assert (tmp_path / "mine.html").read_text(encoding="utf-8") == "mine"
    with pytest.raises(TaskgraftError, match="cannot be written"):
        evaluate(str(forgetful), new_folder, html=tmp_path / "pages" / "colours.html" / "x.html")
