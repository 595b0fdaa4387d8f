"""The images of a run: the new task's, and whichever old task a folder turns out to be of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from taskgraft.data import Preprocessing
from taskgraft.data.task_images import TaskData, load_task_data, match_task
from taskgraft.errors import TaskgraftError
from taskgraft.types import Callbacks, Task
from toys import NEW, OLD, write_folder

WANTED = Preprocessing(16, "squash", 0.875, "bilinear")
SIZE = Task("size", ("big", "round", "small"))
TASKS = (OLD, SIZE)


def gathered(data: Path, **options: Any) -> TaskData:
    given: dict[str, Any] = {"old": None, "old_val": (), "seed": 0, "cache": None, "callbacks": Callbacks()}
    return load_task_data(data, NEW.name, TASKS, WANTED, **{**given, **options})


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    return (
        write_folder(tmp_path / "new", NEW, 40, 1, size=16),
        write_folder(tmp_path / "shapes", OLD, 9, 2, size=16),
        write_folder(tmp_path / "sizes", SIZE, 6, 3, size=16),
    )


def test_the_new_task_alone(folders: tuple[Path, Path, Path]) -> None:
    result = gathered(folders[0])
    assert (result.old, result.old_val) == (None, None)
    assert list(result.described) == ["new"]
    assert result.described["new"]["images"] == {"train": 32, "val": 8}
    assert sum(result.described["new"]["counts"].values()) == 32


def test_an_old_task_is_found_by_its_classes(folders: tuple[Path, Path, Path]) -> None:
    _, shapes, sizes = folders
    assert match_task(shapes, TASKS) == OLD
    assert match_task(sizes, TASKS) == SIZE  # although "round" is a class of both
    result = gathered(folders[0], old=sizes)
    assert result.old is not None
    assert list(result.old.labels) == ["size"]
    assert "old train: size" in result.described


def test_two_old_validation_folders_are_joined(folders: tuple[Path, Path, Path]) -> None:
    new, shapes, sizes = folders
    old = gathered(new, old_val=(shapes, sizes)).old_val
    assert old is not None
    assert len(old.pixels) == len(old.names) == 15
    assert (old.labels["shape"] >= 0).tolist() == [True] * 9 + [False] * 6
    assert (old.labels["size"] >= 0).tolist() == [False] * 9 + [True] * 6
    labels = [*map(OLD.classes.__getitem__, old.labels["shape"][:9].tolist())]
    labels += map(SIZE.classes.__getitem__, old.labels["size"][9:].tolist())
    assert [name.split("/")[0] for name in old.names] == labels


def test_classes_of_no_old_task_are_refused(folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    with pytest.raises(TaskgraftError, match="its classes are of none of the tasks shape, size"):
        match_task(folders[0], TASKS)
    with pytest.raises(TaskgraftError, match="does not exist"):
        match_task(tmp_path / "gone", TASKS)


def test_training_and_validation_pictures_are_both_needed(tmp_path: Path) -> None:
    write_folder(tmp_path / "val", NEW, 8, 1, size=16)
    with pytest.raises(TaskgraftError):
        gathered(tmp_path)
