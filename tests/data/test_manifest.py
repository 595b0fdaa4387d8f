"""From a path to verified images: classes by name, what is refused, what is noted."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from taskgraft.data import DataSet, Preprocess, open_images
from taskgraft.data.manifest import counts, write_lists
from taskgraft.problem import Problem
from taskgraft.types import Task
from toys import NEW, OLD, folder_of

WANTED = Preprocess(16, "squash", 0.875, "bilinear")


def opened(data: Path, task: str = NEW.name, **options: Any) -> DataSet:
    return open_images(data, task, WANTED, **{"seed": 0, **options})


def split(root: Path, train: int = 16, val: int = 8) -> Path:
    folder_of(root / "train", NEW, train, 1, size=16)
    folder_of(root / "val", NEW, val, 2, size=16)
    return root


def flat(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16), (value, value, value)).save(path)


def test_classes_go_by_name_in_every_split(tmp_path: Path) -> None:
    root = split(tmp_path)
    for picture in (root / "val" / "blue").iterdir():  # the first class is missing in val: numbers would shift
        picture.unlink()
    (root / "val" / "blue").rmdir()
    found = opened(root)
    assert found.tasks == (Task("paint", ("blue", "green", "grey", "red")),)
    assert found.train is not None
    assert found.val is not None
    for images in (found.train, found.val):
        names = [name.split("/")[1] for name in images.names]
        assert [found.tasks[0].classes[label] for label in images.labels["paint"].tolist()] == names
    assert counts(found.val, found.tasks[0]) == {"blue": 0, "green": 2, "grey": 2, "red": 2}
    assert (found.test, found.kind) == (None, "folders train, val")
    assert found.train.pixels.shape == (16, 16, 16, 3)
    assert found.train.mean == WANTED.mean


def test_the_pixels_are_those_of_the_named_file(tmp_path: Path) -> None:
    for label, values in (("a", (10, 20, 30, 40, 50)), ("b", (110, 120, 130, 140, 150))):
        for value in values:
            flat(tmp_path / label / f"{value}.png", value)
    found = opened(tmp_path, "x")
    for images in (found.train, found.val):
        assert images is not None
        for name, pixels in zip(images.names, images.pixels, strict=True):
            assert (pixels == int(Path(name).stem)).all()


def test_a_folder_without_splits_is_split_by_content(tmp_path: Path) -> None:
    found = opened(folder_of(tmp_path, NEW, 40, 1, size=16))
    assert found.train is not None
    assert found.val is not None
    assert counts(found.val, found.tasks[0]) == dict.fromkeys(("blue", "green", "grey", "red"), 2)
    assert not set(found.train.names) & set(found.val.names)
    again = opened(tmp_path)
    assert again.val is not None
    assert again.val.names == found.val.names
    assert opened(tmp_path, seed=1).splits != found.splits


def test_a_train_folder_alone_gives_some_to_validation(tmp_path: Path) -> None:
    folder_of(tmp_path / "train", NEW, 40, 1, size=16)
    folder_of(tmp_path / "test", NEW, 8, 2, size=16)
    found = opened(tmp_path)
    assert found.val is not None
    assert found.test is not None
    assert all(name.startswith("train/") for name in found.val.names)
    assert len(found.test.pixels) == 8


def test_an_unknown_class_in_val_is_refused_with_the_nearest(tmp_path: Path) -> None:
    root = split(tmp_path)
    (root / "val" / "green").rename(root / "val" / "gren")
    with pytest.raises(
        Problem, match="val has the class 'gren', which the training pictures lack; did you mean 'green'"
    ):
        opened(root)


def test_given_classes_fix_numbers_and_names(tmp_path: Path) -> None:
    folder_of(tmp_path, OLD, 6, 1, size=16)
    found = opened(tmp_path, "shape", classes=("thin", "round", "square", "flat"), whole="val")
    assert found.train is None
    assert found.val is not None
    assert found.tasks[0].classes == ("thin", "round", "square", "flat")
    assert sorted(found.val.labels["shape"].tolist()) == [0, 0, 1, 1, 2, 2]
    with pytest.raises(Problem, match="val has the class 'thin', which the model lacks; did you mean 'thing'"):
        opened(tmp_path, "shape", classes=("thing", "round", "square"), whole="val")


def test_whole_takes_the_split_of_that_name_alone(tmp_path: Path) -> None:
    found = opened(split(tmp_path), classes=NEW.classes, whole="val")
    assert found.val is not None
    assert len(found.val.pixels) == 8
    assert all(name.startswith("val/") for name in found.val.names)


def test_one_class_is_refused(tmp_path: Path) -> None:
    for value in range(6):
        flat(tmp_path / "cat" / f"{value}.png", value)
    with pytest.raises(Problem, match=r"1 class \(cat\); a classifier needs at least two"):
        opened(tmp_path)


def test_a_few_unreadable_pictures_are_excluded_with_reasons_and_many_stop(tmp_path: Path) -> None:
    root = split(tmp_path / "data", train=32, val=8)
    broken = sorted((root / "train" / "red").iterdir())
    for picture in broken[:2]:  # exactly 5 % of 40
        picture.write_text("no picture")
    found = opened(root, cache_folder=tmp_path / "cache")
    assert found.train is not None
    assert len(found.train.pixels) == 30
    assert [path for path, _ in found.excluded] == [f"train/red/{picture.name}" for picture in broken[:2]]
    assert all("not a picture" in reason for _, reason in found.excluded)
    assert (found.decoded, opened(root, cache_folder=tmp_path / "cache").decoded) == (40, 0)
    write_lists(tmp_path / "out", found)
    with (tmp_path / "out" / "excluded.csv").open(newline="") as file:
        assert [tuple(row) for row in csv.reader(file)] == [("path", "reason"), *found.excluded]
    assert len((tmp_path / "out" / "split.csv").read_text().splitlines()) == 39
    broken[2].write_text("no picture")
    with pytest.raises(Problem, match=r"3 of 40 pictures cannot be used, first 'train/red/.*\(not a picture"):
        opened(root)


def test_leaks_and_conflicts_are_noted(tmp_path: Path) -> None:
    root = split(tmp_path)
    assert opened(root).notes == ()
    first = next((root / "train" / "red").iterdir())
    (root / "val" / "red" / "copy.png").write_bytes(first.read_bytes())
    assert opened(root).notes == ("1 picture(s) stand in two splits: validation is flattered by them",)
    (root / "train" / "blue" / "copy.png").write_bytes(first.read_bytes())
    notes = opened(root).notes
    assert notes[1:] == ("2 picture(s) stand in two classes: their labels contradict each other",)


def test_the_fingerprint_is_of_contents_labels_and_splits(tmp_path: Path) -> None:
    root = split(tmp_path / "one")
    before = opened(root).fingerprint
    assert opened(split(tmp_path / "two")).fingerprint == before  # the place does not matter
    picture = next((root / "train" / "red").iterdir())
    moved = picture.rename(root / "train" / "green" / "moved.png")
    relabelled = opened(root).fingerprint
    moved.rename(root / "val" / "red" / "moved.png")
    elsewhere = opened(root).fingerprint
    flat(root / "val" / "red" / "moved.png", 3)
    assert len({before, relabelled, elsewhere, opened(root).fingerprint}) == 4


def test_a_table_with_two_tasks_labels_both(tmp_path: Path) -> None:
    lines = ["path,split,paint,shape"]
    for number in range(12):
        flat(tmp_path / f"{number}.png", 20 * number)
        shape = OLD.classes[number % 3] if number % 2 else ""
        lines.append(f"{number}.png,{'val' if number > 8 else 'train'},{NEW.classes[number % 2]},{shape}")
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    found = opened(tmp_path / "t.csv", others=(OLD, Task("other", ("x", "y"))))
    assert [task.name for task in found.tasks] == ["paint", "shape"]
    assert found.train is not None
    assert found.train.labels["shape"].tolist() == [-1, 1, -1, 0, -1, 2, -1, 1, -1]
    assert torch.equal(found.train.labels["paint"], (torch.arange(9) % 2 == 0).long())  # green is before red
