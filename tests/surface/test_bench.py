"""`make bench` at toy size: what needs no peer runs, the JSON has its shape, the page is made of it."""

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PARTS = ("steps", "fisher", "memory")
pytestmark = pytest.mark.skipif(
    not (ROOT / "benchmarks" / "speed").is_dir(), reason="the benchmarks are not part of a source archive"
)
LIBRARIES = {"backpack", "nngeometry", "curvlinops", "avalanche"}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a quick run without peers writes."""
    out = tmp_path_factory.mktemp("bench")
    command = [sys.executable, "-m", "benchmarks.speed", "--quick", "--no-peers", "--out", str(out), "--only", *PARTS]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def bench(module: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of the benchmarks, which are no part of the package."""
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module(f"benchmarks.speed.{module}")


def report(results: Path, part: str) -> dict[str, Any]:
    return json.loads((results / f"{part}.json").read_text())


def rows(results: Path, part: str) -> dict[str, dict[str, Any]]:
    (case,) = report(results, part)["cases"]
    return {row["rival"]: row for row in case["rows"]}


def test_each_part_tells_where_and_on_what_it_was_measured(results: Path):
    for part in PARTS:
        result = report(results, part)
        assert result["part"] == part
        assert result["quick"] is True
        assert result["machine"]["cores"] >= 1
        assert result["machine"]["bytes"] > 0
        assert {"python", "torch", "timm", "taskgraft"} <= result["versions"].keys()


def test_every_rival_that_needs_no_library_has_a_rate_with_its_spread(results: Path):
    steps, fisher = rows(results, "steps"), rows(results, "fisher")
    assert {"finetune", "ewc", "si", "distill, recorded", "distill, live", "plain fp32 loop"} <= steps.keys()
    for row in [*steps.values(), *fisher.values()]:
        if row["house"] in ("taskgraft", "pytorch", "careful"):
            assert "error" not in row, row
            assert 0 < row["low"] <= row["median"] <= row["high"]
    assert steps["finetune"]["share"] == 1


def test_a_peer_that_is_not_there_keeps_its_row_with_the_reason(results: Path):
    fisher = rows(results, "fisher")
    assert fisher.keys() >= LIBRARIES
    assert all(fisher[name]["error"] == "left out by --no-peers" for name in LIBRARIES)


def test_the_ways_to_the_fisher_agree_within_the_noise_of_drawn_labels(results: Path):
    fisher = rows(results, "fisher")
    ours = fisher["taskgraft"]["chose"]["trace"]
    for name in ("loop over images", "vmap(grad)"):
        assert fisher[name]["chose"]["trace"] == pytest.approx(ours, rel=0.5)


def test_memory_is_counted_by_storage(results: Path):
    result = rows(results, "memory")
    assert result["finetune"]["method"] == 0
    assert result["l2sp"]["method_over_weights"] == pytest.approx(1, abs=0.01)  # the anchor
    assert result["finetune"]["optimizer"] < 2.1 * result["finetune"]["weights"]  # AdamW: two moments


def test_the_page_is_made_of_the_json_and_touches_nothing_else(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    page = bench("page", monkeypatch)
    for part in PARTS:
        measured = {**report(results, part), "quick": False}
        (tmp_path / f"{part}.json").write_text(json.dumps(measured))
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{page.BEGIN}\nold figures\n{page.END}\nafter\n")
    page.written(tmp_path, readme)
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old figures" not in text
    assert "| backpack | – | – | cannot: left out by --no-peers |" in text
    assert "as a share of finetune" in text
    assert all((tmp_path / f"{part}.png").stat().st_size > 1000 for part in PARTS)


def test_figures_of_toy_size_are_never_shown(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    page = bench("page", monkeypatch)
    readme = tmp_path / "README.md"
    readme.write_text("as it was")
    page.written(results, readme)
    assert readme.read_text() == "as it was"


def test_a_rival_that_fails_costs_no_other_its_turn(monkeypatch: pytest.MonkeyPatch):
    turns, worker = bench("turns", monkeypatch), bench("worker", monkeypatch)
    plan = turns.Plan(0, 0, quick=True)
    case = {"arch": "test_resnet", "size": 32, "batch": 2, "images": 4}
    workers = turns.open_houses([worker.House("here")], plan)
    rivals = (turns.Rival("good", "here", "loops:plain"), turns.Rival("bad", "here", "loops:nobody"))
    good, bad = turns.measure(rivals, workers, case, plan, "good", lambda line: None, {})
    turns.close_houses(workers)
    assert good["median"] > 0
    assert "nobody" in bad["error"]


def test_a_start_is_told_part_by_part(tmp_path: Path, alice: Path, new_folder: Path):
    words = [
        "extend",
        str(alice),
        str(new_folder),
        str(tmp_path / "out"),
        "--task",
        "paint",
        "--steps",
        "4",
        "--batch-size",
        "8",
        "--head-steps",
        "5",
        "--precision",
        "fp32",
        "--cache",
        str(tmp_path / "cache"),
    ]
    command = [sys.executable, "-m", "benchmarks.speed.parts", str(time.monotonic()), *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    parts = {"imports", "rest", "checkpoint", "images", "answers on validation images", "choice of precision",
              "adaptation", "head's warm-up", "first checkpoint", "first step"}  # fmt: skip
    assert set(result["parts"]) == parts
    assert result["total"] == pytest.approx(sum(result["parts"].values()), abs=0.01)
    lines = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0]  # stopped when the step was taken
