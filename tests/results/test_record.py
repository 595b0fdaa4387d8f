"""What a run leaves behind comes back equal, and no reader ever sees a half."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from taskgraft.errors import TaskgraftError
from taskgraft.results import files, predictions, record
from taskgraft.results.predictions import Predictions
from taskgraft.results.record import StepMetrics


def some(softmax: str = "joint", count: int = 3) -> Predictions:
    rng = np.random.default_rng(0)
    return Predictions(
        {"make": ("a", "b"), "paint, new": ("rouge é", "vert", "bleu")},
        softmax,
        tuple(f"{n}/é {n}.png" for n in range(count)),
        {"make": np.array([0, -1, 1])[:count]},
        {
            "make": rng.normal(size=(count, 2)).astype(np.float32),
            "paint, new": rng.normal(size=(count, 3)).astype(np.float32),
        },
    )


@pytest.mark.parametrize("count", [0, 3])
def test_predictions_round_trip(tmp_path: Path, count: int) -> None:
    before = {"new": some(count=count), "old-parent": some("per-task", count)}
    predictions.save_predictions(tmp_path / "p.npz", before)
    after = predictions.load_predictions(tmp_path / "p.npz")
    assert list(after) == list(before)
    for name, preprocessing in before.items():
        result = after[name]
        assert result[:3] == preprocessing[:3]
        for part in ("labels", "logits"):
            assert list(getattr(result, part)) == list(getattr(preprocessing, part))
            for task, values in getattr(preprocessing, part).items():
                np.testing.assert_array_equal(getattr(result, part)[task], values)
                assert getattr(result, part)[task].dtype == values.dtype


def test_load_predictions_refuses_pickle(tmp_path: Path) -> None:
    np.savez(tmp_path / "p.npz", **{"x|meta": np.array([{"a": 1}], dtype=object)})  # pyright: ignore
    with pytest.raises(TaskgraftError, match=r"p\.npz is damaged.*pickle"):
        predictions.load_predictions(tmp_path / "p.npz")


def test_atomic_replaces_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "x.txt"
    for text in ("one", "two"):
        with files.atomic(path) as aside:
            aside.write_text(text)
            assert aside.parent == path.parent  # a rename must stay on one file system
        assert path.read_text() == text
    assert [item.name for item in path.parent.iterdir()] == ["x.txt"]


def test_atomic_keeps_old_file_on_error(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("old")

    def interrupted() -> None:
        with files.atomic(path) as aside:
            aside.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["x.txt"]


def test_atomic_sets_usual_mode(tmp_path: Path) -> None:
    (tmp_path / "usual").write_text("x")
    with files.atomic(tmp_path / "x.txt") as aside:
        aside.write_text("x")
        aside.chmod(0o600)
    assert (tmp_path / "x.txt").stat().st_mode == (tmp_path / "usual").stat().st_mode
    assert sorted(path.name for path in tmp_path.iterdir()) == ["usual", "x.txt"]


def test_atomic_without_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), files.atomic(tmp_path / "x.txt"):
        pass
    assert not (tmp_path / "x.txt").exists()


def test_write_json_is_readable(tmp_path: Path) -> None:
    files.write_json(tmp_path / "x.json", {"é": [1, None]})
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"é": [1, None]}
    assert "é" in text
    assert text.endswith("}\n")


def test_fingerprint_depends_on_parts_and_order() -> None:
    prints = [files.fingerprint(parts) for parts in (["a", "b"], ["b", "a"], ["ab"], ["a"], [], ["a", "b", ""])]
    assert len(set(prints)) == len(prints)
    assert files.fingerprint(iter(["a", "b"])) == prints[0] == hashlib.sha256(b"a\nb\n").hexdigest()
    assert files.fingerprint(["\udcff"]) != files.fingerprint(["\udcfe"])  # names that are no UTF-8


def test_digest(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc" * 100_000)
    assert files.digest(tmp_path / "x") == hashlib.sha256(b"abc" * 100_000).hexdigest()


def test_step_metrics_round_trip() -> None:
    line = StepMetrics(step=3, lr=0.1 / 3, terms={"data": 1e-300, "distill": 2 / 3}, accuracy={"a": 1 / 7})
    assert StepMetrics.model_validate_json(line.model_dump_json(exclude_defaults=True)) == line
    assert json.loads(StepMetrics(step=0).model_dump_json(exclude_defaults=True)) == {"step": 0}


def test_stopwatch_sums_laps() -> None:
    stopwatch = record.Stopwatch()
    stopwatch.lap("a")
    stopwatch.lap("b")
    seconds = stopwatch.seconds()
    assert list(seconds) == ["a", "b", "total"]
    assert seconds["total"] == pytest.approx(seconds["a"] + seconds["b"])


def test_versions() -> None:
    assert {"python", "torch", "timm", "numpy", "pillow", "taskgraft", "machine"} <= record.versions().keys()
