"""A new card from labeled images: the temperature and nothing but the card changes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import taskgraft
from taskgraft.bundle import read_bundle
from taskgraft.errors import TaskgraftError
from taskgraft.results.files import digest
from toys import NEW, OLD, write_folder


@pytest.fixture
def model(alice: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(alice, tmp_path / "model"))


def contested(folder: Path) -> Path:
    """Sixty images, six of them in the folder of another class: a model that is sure of all is too sure."""
    write_folder(folder, OLD, 60, 9)
    for file in sorted((folder / "round").iterdir())[:6]:
        file.rename(folder / "thin" / f"moved-{file.name}")
    return folder


def test_only_the_card_changes(model: Path, tmp_path: Path) -> None:
    before = {path: digest(path) for path in model.rglob("*") if path.is_file()}
    known = read_bundle(model).cards["shape"]
    card = taskgraft.calibrate(model, contested(tmp_path / "other"))
    after = {path: digest(path) for path in model.rglob("*") if path.is_file()}
    assert {path for path in after if after[path] != before.get(path)} == {
        model / "cards/shape.json",
        model / "digests.json",
    }
    assert before.keys() == after.keys()
    stored = read_bundle(model).cards["shape"]
    assert stored == card
    assert card["images"] == card["calibration"]["images"] == 60
    assert card["train_counts"] == known["train_counts"]
    assert card["temperature"] != known["temperature"]
    assert "other" in card["measured_on"]


def test_probabilities_follow_the_card_and_labels_do_not(model: Path, tmp_path: Path, old_folder: Path) -> None:
    folder = old_folder / "val"
    first = list(taskgraft.predict_files(model, [folder]))
    raw = list(taskgraft.predict_files(model, [folder], raw=True))
    taskgraft.calibrate(model, contested(tmp_path / "other"))
    second = list(taskgraft.predict_files(model, [folder]))
    assert raw == list(taskgraft.predict_files(model, [folder], raw=True))

    def column(rows: list[dict], key: str) -> list:
        return [row["tasks"]["shape"][key] for row in rows]

    assert column(first, "label") == column(second, "label")
    assert not np.allclose(column(first, "probability"), column(second, "probability"))


@pytest.mark.parametrize("what", ["few", "foreign", "task", "no bundle"])
def test_what_cannot_be_calibrated_is_said(model: Path, tmp_path: Path, what: str) -> None:
    data = write_folder(tmp_path / "data", NEW if what == "foreign" else OLD, 12 if what == "few" else 30, 9)
    expected = {"few": "12 images", "foreign": "lack", "task": "no task 'paint'", "no bundle": "is not a bundle"}[what]
    given = "test_resnet" if what == "no bundle" else model
    before = digest(model / "cards/shape.json")
    with pytest.raises(TaskgraftError, match=expected):
        taskgraft.calibrate(given, data, task="paint" if what == "task" else None)
    assert digest(model / "cards/shape.json") == before
