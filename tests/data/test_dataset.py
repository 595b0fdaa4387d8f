"""From a path to verified images: classes by name, what is refused, what is noted."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from opened_files import OpenedFiles
from taskgraft.data import Dataset, Preprocessing, file_index, open_images
from taskgraft.data.dataset import count_classes, write_split_lists
from taskgraft.errors import TaskgraftError
from taskgraft.types import Task
from toys import NEW, OLD, write_folder

WANTED = Preprocessing(16, "squash", 0.875, "bilinear")


@pytest.fixture(autouse=True)
def _settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of a test are only just written; elsewhere they are not relied on for some seconds."""
    monkeypatch.setattr(file_index, "SETTLED", 0.0)


def opened(data: Path, task: str = NEW.name, **options: Any) -> Dataset:
    return open_images(data, task, WANTED, **{"seed": 0, **options})


def split(root: Path, train: int = 16, val: int = 8) -> Path:
    write_folder(root / "train", NEW, train, 1, size=16)
    write_folder(root / "val", NEW, val, 2, size=16)
    return root


def flat(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16), (value, value, value)).save(path)


def test_classes_go_by_name_in_every_split(tmp_path: Path) -> None:
    root = split(tmp_path)
    for image_path in (root / "val" / "blue").iterdir():  # the first class is missing in val: numbers would shift
        image_path.unlink()
    (root / "val" / "blue").rmdir()
    result = opened(root)
    assert result.tasks == (Task("paint", ("blue", "green", "grey", "red")),)
    assert result.train is not None
    assert result.val is not None
    for images in (result.train, result.val):
        names = [name.split("/")[1] for name in images.names]
        assert [result.tasks[0].classes[label] for label in images.labels["paint"].tolist()] == names
    assert count_classes(result.val, result.tasks[0]) == {"blue": 0, "green": 2, "grey": 2, "red": 2}
    assert (result.test, result.layout) == (None, "folders train, val")
    assert result.train.pixels.shape == (16, 16, 16, 3)
    assert result.train.mean == WANTED.mean


def test_the_pixels_are_those_of_the_named_file(tmp_path: Path) -> None:
    for label, values in (("a", (10, 20, 30, 40, 50)), ("b", (110, 120, 130, 140, 150))):
        for value in values:
            flat(tmp_path / label / f"{value}.png", value)
    result = opened(tmp_path, "x")
    cached = [opened(tmp_path, "x", cache_folder=tmp_path / ".cache", seed=seed) for seed in (0, 0, 1)]
    assert [part.decoded for part in cached] == [10, 0, 0]
    for images in (part for each in (result, *cached) for part in (each.train, each.val)):
        assert images is not None
        assert len(images.pixels) == len(images.names)
        for name, pixels in zip(images.names, images.pixels, strict=True):
            assert (pixels == int(Path(name).stem)).all()


def test_a_folder_without_splits_is_split_by_content(tmp_path: Path) -> None:
    result = opened(write_folder(tmp_path, NEW, 40, 1, size=16))
    assert result.train is not None
    assert result.val is not None
    assert count_classes(result.val, result.tasks[0]) == dict.fromkeys(("blue", "green", "grey", "red"), 2)
    assert not set(result.train.names) & set(result.val.names)
    again = opened(tmp_path)
    assert again.val is not None
    assert again.val.names == result.val.names
    other = opened(tmp_path, seed=1).val
    assert other is not None
    assert other.names != result.val.names


def test_a_train_folder_alone_gives_some_to_validation(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", NEW, 40, 1, size=16)
    write_folder(tmp_path / "test", NEW, 8, 2, size=16)
    result = opened(tmp_path)
    assert result.val is not None
    assert result.test is not None
    assert all(name.startswith("train/") for name in result.val.names)
    assert len(result.test.pixels) == 8


def test_an_unknown_class_in_val_is_refused_with_the_nearest(tmp_path: Path) -> None:
    root = split(tmp_path)
    (root / "val" / "green").rename(root / "val" / "gren")
    with pytest.raises(
        TaskgraftError, match="val has the class 'gren', which the training images lack; did you mean 'green'"
    ):
        opened(root)


def test_given_classes_fix_numbers_and_names(tmp_path: Path) -> None:
    write_folder(tmp_path, OLD, 6, 1, size=16)
    result = opened(tmp_path, "shape", classes=("thin", "round", "square", "flat"), as_split="val")
    assert result.train is None
    assert result.val is not None
    assert result.tasks[0].classes == ("thin", "round", "square", "flat")
    assert sorted(result.val.labels["shape"].tolist()) == [0, 0, 1, 1, 2, 2]
    with pytest.raises(TaskgraftError, match="val has the class 'thin', which the model lacks; did you mean 'thing'"):
        opened(tmp_path, "shape", classes=("thing", "round", "square"), as_split="val")


def test_whole_takes_the_split_of_that_name_alone(tmp_path: Path) -> None:
    result = opened(split(tmp_path), classes=NEW.classes, as_split="val")
    assert result.val is not None
    assert len(result.val.pixels) == 8
    assert all(name.startswith("val/") for name in result.val.names)


def test_one_class_is_refused(tmp_path: Path) -> None:
    for value in range(6):
        flat(tmp_path / "cat" / f"{value}.png", value)
    with pytest.raises(TaskgraftError, match=r"1 class \(cat\), but a classifier needs two; add"):
        opened(tmp_path)


def alike(one: Dataset, two: Dataset) -> bool:
    """Whether two sets are equal but for the work that they took."""
    for name in ("train", "val", "test"):
        left, right = getattr(one, name), getattr(two, name)
        if (left is None) != (right is None):
            return False
        if left is not None and not (
            torch.equal(left.pixels, right.pixels)
            and tuple(left.names) == tuple(right.names)
            and all(torch.equal(left.labels[task], right.labels[task]) for task in left.labels | right.labels)
            and left[3:] == right[3:]
        ):
            return False
    rest = ("tasks", "excluded", "layout", "fingerprint", "notes")
    return all(getattr(one, name) == getattr(two, name) for name in rest)


@pytest.mark.parametrize("given", [True, False])
def test_a_second_start_opens_no_picture(tmp_path: Path, given: bool, opened_files: OpenedFiles) -> None:
    root = split(tmp_path / "data", train=40) if given else write_folder(tmp_path / "data", NEW, 40, 1, size=16)
    image_path = next(root.rglob("7.png"))
    image_path.write_text("no image")
    home = tmp_path / "cache"
    with opened_files(root) as read:
        first = opened(root, cache_folder=home)
    assert (first.decoded, len(set(read))) == ((48, 48) if given else (40, 40))
    assert len(read) == len(set(read))  # once: hashed and decoded from the same bytes
    choices: tuple[dict[str, Any], ...] = ({}, {"seed": 1}, {"others": (OLD,)})
    for options in choices:  # the same, and what no file has to be opened for
        with opened_files(root) as read:
            again = opened(root, cache_folder=home, **options)
        assert (again.decoded, read) == (0, [])
        assert alike(again, opened(root, **options))
    with opened_files(root) as read:
        larger = open_images(root, NEW.name, WANTED._replace(size=24), seed=0, cache_folder=home)
    assert len(read) == larger.decoded == len(set(first.splits()))  # the damaged one is known


@pytest.mark.parametrize("keep_time", [True, False])
def test_a_change_is_seen_and_costs_one_file(tmp_path: Path, keep_time: bool, opened_files: OpenedFiles) -> None:
    root, home = split(tmp_path / "data"), tmp_path / "cache"
    first = opened(root, cache_folder=home)
    image_path = root / "train" / "red" / "0.png"
    before, size = image_path.stat(), len(image_path.read_bytes())
    flat(image_path, 9)
    image_path.write_bytes(image_path.read_bytes().ljust(size, b"\0"))  # same size
    if keep_time:
        os.utime(image_path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with opened_files(root) as read:
        second = opened(root, cache_folder=home)
    assert (second.decoded, read) == (1, [str(image_path)])
    assert second.fingerprint != first.fingerprint
    assert alike(second, opened(root))
    flat(root / "val" / "red" / "new.png", 11)
    third = opened(root, cache_folder=home)
    assert (third.decoded, third.val is not None and len(third.val.names)) == (1, 9)
    image_path.unlink()
    fourth = opened(root, cache_folder=home)
    assert fourth.decoded == 0
    assert alike(fourth, opened(root))


def test_what_was_written_a_moment_ago_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened_files: OpenedFiles
) -> None:
    monkeypatch.setattr(file_index, "SETTLED", 3600.0)
    root, home = split(tmp_path / "data"), tmp_path / "cache"
    opened(root, cache_folder=home)
    with opened_files(root) as read:
        assert opened(root, cache_folder=home).decoded == 0  # read, but known by what it holds
    assert len(read) == 24


def test_where_the_system_tells_no_time_of_change_everything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened_files: OpenedFiles
) -> None:
    monkeypatch.setattr(file_index, "HAS_CHANGE_TIME", False)
    root = split(tmp_path / "data")
    for _ in range(2):
        with opened_files(root) as read:
            result = opened(root, cache_folder=tmp_path / "cache")
    assert (result.decoded, len(read)) == (0, 24)


def test_a_folder_that_was_moved_with_its_pictures_is_seen(tmp_path: Path) -> None:
    for number, name in enumerate(("a/0.png", "a/1.png", "b/2.png", "b/3.png")):
        flat(tmp_path / "data" / name, 30 * number)
    opened(tmp_path / "data", cache_folder=tmp_path / "cache")
    (tmp_path / "data" / "b").rename(tmp_path / "data" / "a" / "b")  # no file has changed, nor has their order
    with pytest.raises(TaskgraftError, match="a/b is a folder inside the class folder 'a'"):
        opened(tmp_path / "data", cache_folder=tmp_path / "cache")


def test_a_change_in_a_root_one_level_up_is_seen(tmp_path: Path) -> None:
    for number in range(8):
        flat(tmp_path / "data" / "pets" / "train" / "ab"[number % 2] / f"{number}.png", 20 * number)
    first = opened(tmp_path / "data", cache_folder=tmp_path / "cache")
    assert opened(tmp_path / "data", cache_folder=tmp_path / "cache").decoded == 0
    flat(tmp_path / "data" / "pets" / "train" / "a" / "0.png", 250)
    second = opened(tmp_path / "data", cache_folder=tmp_path / "cache")
    assert second.decoded == 1
    assert second.fingerprint != first.fingerprint


def test_a_table_is_as_unchanged_as_its_pictures(tmp_path: Path, opened_files: OpenedFiles) -> None:
    for number in range(8):
        flat(tmp_path / "data" / f"{number}.png", 20 * number)
    table, home = tmp_path / "data" / "t.csv", tmp_path / "cache"
    lines = ["path,paint", *(f"{number}.png,{NEW.classes[number % 2]}" for number in range(8))]
    table.write_text("\n".join(lines) + "\n")
    first = opened(table, cache_folder=home)
    with opened_files(tmp_path / "data") as read:
        second = opened(table, cache_folder=home)
    assert set(read) <= {str(table)}
    assert alike(first, second)
    table.write_text("\n".join([*lines[:-1], f"7.png,{NEW.classes[0]}"]) + "\n")
    third = opened(table, cache_folder=home)
    assert third.decoded == 0
    assert third.fingerprint != first.fingerprint
    flat(tmp_path / "data" / "3.png", 250)
    fourth = opened(table, cache_folder=home)
    assert fourth.decoded == 1
    assert alike(fourth, opened(table))


def test_no_set_is_copied_into_memory(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data", NEW, 40, 1, size=16)
    (root / "red" / "0.png").write_text("no image")
    for _ in range(2):
        result = opened(root, cache_folder=tmp_path / "cache")
        assert result.train is not None
        assert result.val is not None
        start, size = result.train.pixels.data_ptr(), result.train.pixels.nbytes
        assert result.val.pixels.data_ptr() == start + size  # neighbours in one mapping
        with Path("/proc/self/maps").open() as file:
            maps = [line.split() for line in file if line.rstrip().endswith(".u8")]
        assert any(int(low, 16) <= start < int(high, 16) for low, high in (line[0].split("-") for line in maps))
    assert len(list((tmp_path / "cache").rglob("*.u8"))) == 1


def test_a_few_unreadable_pictures_are_excluded_with_reasons_and_many_stop(tmp_path: Path) -> None:
    root = split(tmp_path / "data", train=32, val=8)
    broken = sorted((root / "train" / "red").iterdir())
    for image_path in broken[:2]:  # exactly 5 % of 40
        image_path.write_text("no image")
    result = opened(root, cache_folder=tmp_path / "cache")
    assert result.train is not None
    assert len(result.train.pixels) == 30
    assert [path for path, _ in result.excluded] == [f"train/red/{image_path.name}" for image_path in broken[:2]]
    assert all("not an image" in reason for _, reason in result.excluded)
    assert (result.decoded, opened(root, cache_folder=tmp_path / "cache").decoded) == (40, 0)
    write_split_lists(tmp_path / "out", result)
    with (tmp_path / "out" / "excluded.csv").open(newline="") as file:
        assert [tuple(row) for row in csv.reader(file)] == [("path", "reason"), *result.excluded]
    with (tmp_path / "out" / "split.csv").open(newline="") as file:
        rows = [tuple(row) for row in csv.reader(file)]
    assert rows[0] == ("path", "split")
    assert result.val is not None
    assert sorted(rows[1:]) == sorted((name, name.split("/")[0]) for name in [*result.train.names, *result.val.names])
    broken[2].write_text("no image")
    with pytest.raises(TaskgraftError, match=r"3 of 40 images cannot be used, first 'train/red/.*\(not an image"):
        opened(root)


def gray16(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((16, 16), value, np.uint16)).save(path)


def test_16_bit_files_of_a_12_bit_camera_are_not_black(tmp_path: Path, opened_files: OpenedFiles) -> None:
    root, home = tmp_path / "data", tmp_path / "cache"
    for number in range(20):
        gray16(root / "ab"[number % 2] / f"{number}.png", 200 * number)
    first = opened(root, cache_folder=home, find_bits=True)
    assert first.bits == 12
    assert "the largest value of the 16-bit images is 3800: read as 12 bits" in first.notes[0]
    assert first.train is not None
    for path, image in zip(first.train.names, first.train.pixels, strict=True):
        assert int(image.max()) == int(image.min()) == round(200 * int(Path(path).stem) / 4095 * 255)
    for cache in (home, None):
        again = opened(root, cache_folder=cache, find_bits=True)
        assert alike(first, again)
        assert again.bits == 12
    with opened_files(root) as read:
        gray16(root / "a" / "new.png", 100)
        third = opened(root, cache_folder=home, find_bits=True)
    assert (third.bits, set(read)) == (12, {str(root / "a" / "new.png")})  # the others' largest value is known
    assert "so they are nearly black; --preprocessing 12bit" in opened(root, cache_folder=home).notes[0]
    gray16(root / "a" / "new.png", 60000)
    assert opened(root, cache_folder=home, find_bits=True).bits == 16
    refused = open_images(root, NEW.name, WANTED._replace(bits=12), seed=0, cache_folder=home)
    assert refused.excluded == (("a/new.png", "its value 60000 is beyond the preprocessing's 12 bits"),)
    assert opened(root, cache_folder=home, find_bits=True).excluded == ()  # another preprocessing may read it


def test_missing_files_of_a_table_count_as_unreadable(tmp_path: Path) -> None:
    for number in range(20):
        flat(tmp_path / f"{number}.png", 10 * number)
    rows = [f"{number}.png,{'ab'[number % 2]}" for number in range(22)]
    (tmp_path / "t.csv").write_text("\n".join(["path,paint", *rows[:21]]) + "\n")
    assert opened(tmp_path / "t.csv").excluded == (("20.png", "line 22: no such file"),)  # less than 5 % of 21
    (tmp_path / "t.csv").write_text("\n".join(["path,paint", *rows]) + "\n")
    with pytest.raises(TaskgraftError, match=r"2 of 22 images cannot be used, first '20.png' \(line 22: no such file"):
        opened(tmp_path / "t.csv")


def test_leaks_and_conflicts_are_noted(tmp_path: Path) -> None:
    root = split(tmp_path)
    assert opened(root).notes == ()
    first = next((root / "train" / "red").iterdir())
    (root / "val" / "red" / "copy.png").write_bytes(first.read_bytes())
    assert opened(root).notes == ("1 image(s) are in two splits: validation results are too optimistic",)
    (root / "train" / "blue" / "copy.png").write_bytes(first.read_bytes())
    notes = opened(root).notes
    assert notes[1:] == ("2 image(s) are in two classes: their labels contradict each other",)


def test_the_fingerprint_is_of_contents_labels_and_splits(tmp_path: Path) -> None:
    root = split(tmp_path / "one")
    before = opened(root).fingerprint
    assert opened(split(tmp_path / "two")).fingerprint == before  # the place does not matter
    image_path = next((root / "train" / "red").iterdir())
    moved = image_path.rename(root / "train" / "green" / "moved.png")
    relabeled = opened(root).fingerprint
    moved.rename(root / "val" / "red" / "moved.png")
    elsewhere = opened(root).fingerprint
    flat(root / "val" / "red" / "moved.png", 3)
    assert len({before, relabeled, elsewhere, opened(root).fingerprint}) == 4


def test_a_table_with_two_tasks_labels_both(tmp_path: Path) -> None:
    lines = ["path,split,paint,shape"]
    for number in range(12):
        flat(tmp_path / f"{number}.png", 20 * number)
        shape = OLD.classes[number % 3] if number % 2 else ""
        lines.append(f"{number}.png,{'val' if number > 8 else 'train'},{NEW.classes[number % 2]},{shape}")
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    result = opened(tmp_path / "t.csv", others=(OLD, Task("other", ("x", "y"))))
    assert [task.name for task in result.tasks] == ["paint", "shape"]
    assert result.train is not None
    assert result.train.labels["shape"].tolist() == [-1, 1, -1, 0, -1, 2, -1, 1, -1]
    assert torch.equal(result.train.labels["paint"], (torch.arange(9) % 2 == 0).long())  # green is before red
