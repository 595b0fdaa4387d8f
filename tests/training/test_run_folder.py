"""The run folder: one writer, and an answer to what a second start of the same command finds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from taskgraft.errors import TaskgraftError
from taskgraft.results.record import StepMetrics
from taskgraft.training import run_folder

SETTINGS = {"method": "distill", "config": {"lr": 0.01, "steps": 6}, "data": ("x", "y")}


def begun(out: Path) -> Path:
    out.mkdir()
    run_folder.create(out, SETTINGS, {"config": {"lr": 0.01}, "reason": "why"}, "taskgraft extend a b c")
    return out


@pytest.mark.parametrize("resume", [True, False])
def test_inspect_missing_or_empty_folder(tmp_path: Path, resume: bool) -> None:
    assert run_folder.inspect(tmp_path / "gone", SETTINGS, resume) == "new"
    assert run_folder.inspect(tmp_path, SETTINGS, resume) == "new"
    assert not (tmp_path / "gone").exists()
    for name in (".lock", ".holder", "metrics.jsonl", "log.txt", ".run.json.77"):  # a start that came no further
        (tmp_path / name).touch()
    assert run_folder.inspect(tmp_path, SETTINGS, resume) == "new"


def test_inspect_refuses_other_files(tmp_path: Path) -> None:
    for name in ("thesis.tex", ".thesis.1"):
        (tmp_path / name).write_text("mine")
    with pytest.raises(TaskgraftError, match=r"other files \(\.thesis\.1, thesis\.tex\); choose an empty or new OUT"):
        run_folder.inspect(tmp_path, SETTINGS, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".thesis.1", "thesis.tex"]


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"project": "somebody else\'s"}'])
def test_inspect_refuses_other_run_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(TaskgraftError, match=r"run\.json"):
        run_folder.inspect(tmp_path, SETTINGS, True)


def test_inspect_begun_run_needs_resume(tmp_path: Path) -> None:
    out = begun(tmp_path / "out")
    with pytest.raises(TaskgraftError, match="holds this run, unfinished: add --resume"):
        run_folder.inspect(out, SETTINGS, False)
    assert run_folder.inspect(out, SETTINGS, True) == "begun"
    assert run_folder.read(out)["resolved"] == {"config": {"lr": 0.01}, "reason": "why"}
    assert (out / "command.txt").read_text() == "taskgraft extend a b c\n"


@pytest.mark.parametrize("resume", [True, False])
def test_inspect_finished_run(tmp_path: Path, resume: bool) -> None:
    out = begun(tmp_path / "out")
    run_folder.update(out, done=True)
    (out / "model.safetensors").touch()
    assert run_folder.inspect(out, SETTINGS, resume) == "done"
    assert run_folder.read(out)["resolved"]["reason"] == "why"


def test_inspect_names_each_difference(tmp_path: Path) -> None:
    out = begun(tmp_path / "out")
    other = {"method": "ewc", "config": {"lr": 0.1, "steps": 6}, "data": ("x", "y"), "more": 1}
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(TaskgraftError) as caught:
        run_folder.inspect(out, other, True)
    message = str(caught.value)
    for part in ("method was 'distill', is 'ewc'", "more was None, is 1", "config.lr was 0.01, is 0.1"):
        assert part in message
    assert "steps" not in message
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_lock_names_holder_and_ends_with_process(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from taskgraft.training.run_folder import lock\n"
        "with lock(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(TaskgraftError, match=rf"is being written by process {other.pid} on .*; wait for it"),
            run_folder.lock(tmp_path / "out"),
        ):
            pass
        other.kill()
    with run_folder.lock(tmp_path / "out"):
        assert f"process {os.getpid()} on" in (tmp_path / "out" / ".holder").read_text()
    assert not (tmp_path / "out" / ".holder").exists()


def test_lock_refuses_uncreatable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TaskgraftError, match="choose another OUT"), run_folder.lock(tmp_path / "file"):
        pass
    with pytest.raises(TaskgraftError, match="choose another OUT"), run_folder.lock(tmp_path / "file" / "below"):
        pass


LINES = [StepMetrics(step=step, lr=0.1, terms={"data": 1 / (step + 3)}, accuracy={"a": 1 / 3}) for step in range(5)]


def test_metrics_round_trip(tmp_path: Path) -> None:
    assert run_folder.read_metrics(tmp_path) == []
    for line in LINES:
        run_folder.append_metrics(tmp_path, line)
    assert run_folder.read_metrics(tmp_path) == LINES


def test_read_metrics_skips_half_written_line(tmp_path: Path) -> None:
    for line in LINES:
        run_folder.append_metrics(tmp_path, line)
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text()[:-9])
    assert run_folder.read_metrics(tmp_path) == LINES[:-1]


def test_truncate_metrics(tmp_path: Path) -> None:
    for line in LINES:
        run_folder.append_metrics(tmp_path, line)
    full = (tmp_path / "metrics.jsonl").read_bytes()
    assert run_folder.truncate_metrics(tmp_path, 2) == LINES[:3]
    assert run_folder.read_metrics(tmp_path) == LINES[:3]
    for line in LINES[3:]:
        run_folder.append_metrics(tmp_path, line)
    assert (tmp_path / "metrics.jsonl").read_bytes() == full
    assert run_folder.truncate_metrics(tmp_path, -1) == []
    assert run_folder.read_metrics(tmp_path) == []


def test_differences_name_nested_settings() -> None:
    assert run_folder.differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}) == ["a.c was 2, is 3"]
    assert run_folder.differences({"a": 1}, {}) == ["a was 1, is None"]
    assert run_folder.differences(SETTINGS, json.loads(json.dumps(SETTINGS))) == ["data was ('x', 'y'), is ['x', 'y']"]
