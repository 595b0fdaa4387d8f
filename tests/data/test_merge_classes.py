"""Classes merged by name, and the table that is written of them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from PIL import Image

from taskgraft.data import Preprocessing, open_images
from taskgraft.data.class_names import MergedClasses, merge_classes
from taskgraft.data.layouts import Listing, list_images, write_manifest
from taskgraft.errors import TaskgraftError

SIZES = {"ford_focus_2001": 3, "ford_focus_2002": 2, "ford_ka_1999": 1, "vw_golf_1990": 4, "van": 2}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    value = 0
    for label, count in SIZES.items():
        for number in range(count):
            value += 1
            place = tmp_path / "cars" / label / f"{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (value * 9, 0, 0)).save(place)
    return tmp_path / "cars"


def kept(result: MergedClasses) -> dict[str, int]:
    labels = [entry.labels["make"] for entry in result.entries]
    return {label: labels.count(label) for label in sorted(set(labels))}


def listing(root: Path) -> Listing:
    return list_images(root, "make")


def test_classes_merge_by_the_groups_of_a_pattern(root: Path) -> None:
    result = merge_classes(listing(root).entries, "make", r"^([^_]+)_", 0)
    assert kept(result) == {"ford": 6, "vw": 4}
    assert result.renamed == {label: None if label == "van" else label.split("_")[0] for label in SIZES}
    two = merge_classes(listing(root).entries, "make", r"^([^_]+)_([^_]+)_", 0)
    assert kept(two) == {"ford_focus": 5, "ford_ka": 1, "vw_golf": 4}
    assert kept(merge_classes(listing(root).entries, "make", r"^[a-z]+", 0)) == {"ford": 6, "van": 2, "vw": 4}
    assert kept(merge_classes(listing(root).entries, "make", None, 0)) == SIZES


def test_small_classes_are_dropped_after_merging(root: Path) -> None:
    result = merge_classes(listing(root).entries, "make", r"^([^_]+)_([^_]+)_", 4)
    assert kept(result) == {"ford_focus": 5, "vw_golf": 4}
    assert result.dropped == {"ford_ka": 1}
    assert result.renamed["ford_ka_1999"] is None


def test_only_training_pictures_count_where_there_is_a_split(root: Path) -> None:
    halved = [
        entry._replace(split="val" if entry.path.endswith("0.png") else "train") for entry in listing(root).entries
    ]
    assert set(kept(merge_classes(halved, "make", None, 2))) == {"ford_focus_2001", "vw_golf_1990"}


@pytest.mark.parametrize(
    ("pattern", "least", "message"),
    [
        ("([", 0, "is not a valid regular expression"),
        ("^truck_", 0, "matches none of the 5 class names; they look like 'ford_focus_2001'"),
        (None, 4, "leave 1 of 5 classes, but two are needed"),
        ("^(ford)_", 0, "leave 1 of 5 classes"),
    ],
)
def test_a_bad_pattern_is_refused(root: Path, pattern: str | None, least: int, message: str) -> None:
    with pytest.raises(TaskgraftError, match=message):
        merge_classes(listing(root).entries, "make", pattern, least)


@pytest.mark.parametrize("where", ["makes.csv", "cars/makes.csv"])
def test_the_table_can_be_used_as_data_and_no_picture_is_touched(root: Path, where: str) -> None:
    def state() -> dict[str, tuple[str, int]]:
        return {str(p): (hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_mtime_ns) for p in root.rglob("*.png")}

    before, path = state(), root.parent / where
    result = merge_classes(listing(root).entries, "make", r"^([^_]+)_", 0)
    write_manifest(path, root, result.entries, "make")
    assert state() == before
    again = list_images(path, "make")
    assert [dict(entry.labels) for entry in again.entries] == [dict(entry.labels) for entry in result.entries]
    assert not again.skipped
    opened = open_images(path, "make", Preprocessing(8, "squash"), seed=0)
    assert opened.tasks[0].classes == ("ford", "vw")


def test_splits_survive_the_table(root: Path) -> None:
    os.rename(root, root.parent / "train")
    root.mkdir()
    os.rename(root.parent / "train", root / "train")
    result = merge_classes(listing(root).entries, "make", None, 0)
    write_manifest(root / "t.csv", root, result.entries, "make")
    assert {entry.split for entry in list_images(root / "t.csv", "make").entries} == {"train"}


def test_a_table_that_could_not_name_the_pictures_is_refused(root: Path) -> None:
    entries = listing(root).entries
    for path in (root / "van" / "t.csv", root.parent / "elsewhere" / "t.csv"):
        with pytest.raises(TaskgraftError, match=r"or a folder above it"):
            write_manifest(path, root, entries, "make")
        assert not path.exists()
