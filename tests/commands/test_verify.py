"""`evaluate --verify`: a bundle is what it was, and every way in which it is not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from taskgraft.bundle import digests
from taskgraft.commands.calibrate import calibrate
from taskgraft.commands.verify import verify
from taskgraft.errors import TaskgraftError
from taskgraft.results.files import digest


@pytest.fixture
def bundle(plain: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(plain, tmp_path / "bundle"))


def test_a_bundle_is_what_it_was(bundle: Path, branched: Path, alice: Path) -> None:
    for model in (bundle, branched, alice):
        result = verify(model)
        assert result["intact"], result["lines"]
        assert result["results"] == []
        assert all(part["same"] and part["equal_predictions"] == 1 for part in result["predictions"])
    assert [part["set"] for part in verify(bundle)["predictions"]] == ["new", "old"]


def test_every_input_and_output_has_its_digest(plain: Path, alice: Path) -> None:
    known = digests.read(plain)
    assert known.inputs["parent"] == known.inputs["parent/model.safetensors"] == digest(alice / "model.safetensors")
    assert known.inputs["parent/config.json"] == digest(alice / "config.json")
    assert {"images/new", "images/old val: shape"} <= known.inputs.keys()
    assert all(len(mark) == 64 for mark in known.inputs.values())
    assert known.files["cards/paint.json"] == digest(plain / "cards" / "paint.json")
    assert {"config.json", "model.safetensors", "record.json", "predictions.npz"} <= known.files.keys()


def other_weights(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({name: value * 1.5 for name, value in tensors.items()}, folder / "model.safetensors")


def other_result(folder: Path) -> None:
    record = json.loads((folder / "record.json").read_text())
    record["tasks"][0]["child"]["mean"] = 0.999
    (folder / "record.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (other_weights, "model.safetensors has changed"),
        (other_result, "record.json has changed"),
        (lambda folder: (folder / "split.csv").unlink(), "split.csv is missing"),
        (lambda folder: (folder / "cards" / "more.json").write_text("{}"), "cards/more.json is not listed"),
    ],
)
def test_what_has_changed_is_named(bundle: Path, change: Callable[[Path], object], line: str) -> None:
    change(bundle)
    result = verify(bundle)
    assert not result["intact"]
    assert f"  {line}" in result["lines"]
    assert result["lines"][-1].startswith("CHANGED: ")
    assert bool(result["results"]) == (change is other_result)
    assert all(part["same"] for part in result["predictions"]) == (change is not other_weights)


def test_predictions_that_are_not_the_models(bundle: Path) -> None:
    with np.load(bundle / "predictions.npz") as file:
        arrays = dict(file)
    arrays["new|logits|paint"] = arrays["new|logits|paint"] + 1
    np.savez(bundle / "predictions.npz", **arrays)  # pyright: ignore[reportArgumentType]
    digests.write(bundle, digests.read(bundle).inputs)  # as a careful forger would
    result = verify(bundle)
    assert result["files"]["changed"] == ()
    assert [part["same"] for part in result["predictions"]] == [False, True]
    assert not result["intact"]


def test_pictures_that_have_moved_or_changed(bundle: Path, new_folder: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(new_folder, tmp_path / "moved"))
    assert verify(bundle, moved)["intact"]
    next((moved / "val" / "red").iterdir()).unlink()
    result = verify(bundle, moved)
    assert result["predictions"][0]["reason"] == "these are not the images of the record"
    assert not result["intact"]
    away = verify(bundle, tmp_path / "nowhere")
    assert away["predictions"][0]["same"] is None
    assert away["intact"]  # files and numbers are, and the line says what was not compared
    assert any("not compared" in line and "nowhere does not exist" in line for line in away["lines"])


def test_a_card_that_was_written_anew_is_noted(bundle: Path, old_folder: Path) -> None:
    before = digests.read(bundle).files["cards/shape.json"]
    calibrate(bundle, old_folder / "val", task="shape")
    assert digests.read(bundle).files["cards/shape.json"] != before
    assert verify(bundle)["intact"]


def test_what_is_no_finished_bundle(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(TaskgraftError, match=r"has no digests\.json"):
        verify(tmp_path)
    (bundle / digests.FILE).write_text('{"files": 3}')
    with pytest.raises(TaskgraftError, match=r"digests\.json is damaged"):
        verify(bundle)
