"""What a program holds as labeled images is listed, split and decoded as the same images in a folder are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader, Subset, TensorDataset

from taskgraft.data import Dataset, Preprocessing, open_images
from taskgraft.data.labeled_images import as_source
from taskgraft.errors import DataError, TaskgraftError
from toys import NEW, make_images, write_folder

SQUARE = Preprocessing(32, "squash", 1.0, "bilinear", (0.5,) * 3, (0.25,) * 3)
GIVEN = make_images(20, NEW, 3)
PIXELS, LABELS = GIVEN.pixels, GIVEN.labels[NEW.name]
TEXTS = [NEW.classes[label] for label in LABELS.tolist()]
PICTURES = [Image.fromarray(pixels.numpy()) for pixels in PIXELS]


def read(data: Any, **options: Any) -> Dataset:
    return open_images(as_source(data), "paint", SQUARE, seed=0, **options)


def contents(dataset: Dataset) -> set[tuple[bytes, str]]:
    """The images of both splits with their classes, in no order."""
    names, found = dataset.tasks[0].classes, set()
    for images in (dataset.train, dataset.val):
        assert images
        labels = images.labels["paint"].tolist()
        found |= {(p.numpy().tobytes(), names[label]) for p, label in zip(images.pixels, labels, strict=True)}
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("images") / "paint", NEW, 20, 3)


def test_files_of_a_torchvision_folder_are_those_of_the_folder(folder: Path) -> None:
    plain, found = read(folder), read(torchvision.datasets.ImageFolder(folder))
    assert found.fingerprint == plain.fingerprint
    assert list(found.splits()) == list(plain.splits())
    subset = read(Subset(torchvision.datasets.ImageFolder(folder), list(range(0, 20, 2))))
    assert len(list(subset.splits())) == 10


class Scaled(torch.utils.data.Dataset[Any]):
    """Float tensors in steps of 1/255, as ToTensor makes them, with numbers and class names."""

    classes = list(NEW.classes)

    def __len__(self) -> int:
        return len(PIXELS)

    def __getitem__(self, row: int) -> Any:
        return PIXELS[row].permute(2, 0, 1).float() / 255, int(LABELS[row])


@pytest.mark.parametrize(
    "data",
    [
        (PICTURES, TEXTS),
        (PIXELS.numpy(), np.array(TEXTS)),
        (PIXELS.permute(0, 3, 1, 2), TEXTS),
        list(zip(PICTURES, TEXTS, strict=True)),
        Scaled(),
        DataLoader(Scaled(), batch_size=3, shuffle=True),
    ],
    ids=["Pillow", "array", "channels first", "list", "dataset", "loader"],
)
def test_every_form_gives_the_pixels_of_the_folder(folder: Path, data: Any) -> None:
    found = read(data)
    assert contents(found) == contents(read(folder))
    assert set(found.tasks[0].classes) == set(NEW.classes)


def test_shuffled_loader_is_the_same_data_each_time() -> None:
    first, second = (read(DataLoader(Scaled(), batch_size=3, shuffle=True)) for _ in range(2))
    assert first.fingerprint == second.fingerprint
    assert list(first.splits()) == list(second.splits())


def test_classes_keep_the_order_of_their_source() -> None:
    assert read(Scaled()).tasks[0].classes == NEW.classes
    numbers = read((PICTURES, [2 + 8 * (row % 2) for row in range(20)]))
    assert numbers.tasks[0].classes == ("2", "10")
    assert "its classes have no names: their numbers are used" in numbers.notes


def test_splits_by_a_dictionary_and_labels_that_are_missing() -> None:
    labels: list[Any] = [*TEXTS[:15], -1]
    found = read({"train": (PICTURES[:16], labels), "validation": (PICTURES[16:], TEXTS[16:])})
    assert found.train
    assert found.val
    assert found.train.names[0] == "train/0"
    assert (len(found.train.pixels), len(found.val.pixels)) == (15, 4)
    assert "1 image(s) without a label were left out" in found.notes


def test_unreadable_images_are_reasons() -> None:
    class Broken(Scaled):
        def __getitem__(self, row: int) -> Any:
            if row == 7:
                raise OSError("disk gone")
            return super().__getitem__(row)

        targets = LABELS

    assert read(Broken()).excluded == (("7", "cannot be read: OSError: disk gone"),)


def test_hugging_face_dataset_of_files_is_the_folder(folder: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(image=datasets.Image(), paint=datasets.ClassLabel(names=sorted(NEW.classes)),
                                 size=datasets.ClassLabel(names=["big", "small"]))  # fmt: skip
    paths = sorted(folder.rglob("*.png"))
    rows = {
        "image": [{"bytes": path.read_bytes(), "path": None} for path in paths],
        "paint": [path.parent.name for path in paths],
        "size": ["big", *["small"] * (len(paths) - 1)],
    }
    rows["paint"] = [sorted(NEW.classes).index(name) for name in rows["paint"]]
    rows["size"] = [["big", "small"].index(name) for name in rows["size"]]
    dataset = datasets.Dataset.from_dict(rows, features=features)
    assert read(dataset).fingerprint == read(folder).fingerprint
    both = read(datasets.DatasetDict(train=dataset, validation=dataset.select(range(4))))
    assert both.val
    assert len(both.val.pixels) == 4
    with pytest.raises(DataError, match="several columns that may hold the labels; choose one as the task: paint, siz"):
        open_images(as_source(dataset), "color", SQUARE, seed=0)
    with pytest.raises(TaskgraftError, match=r"and no image; keep one column of datasets\.Image"):
        read(dataset.remove_columns("image"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (7, "data is a int; give a path, a torchvision or other Dataset"),
        ((PIXELS.float() / 100, TEXTS), "gives floats that are no 8-bit pixels, from 0 to 2.55; give images without"),
        ((torch.zeros(4, 6), [0, 1, 0, 1]), r"images are \[4, 6\] of float32; .* or use taskgraft.learn"),
        ((PICTURES, TEXTS[:3]), "there are 20 images and 3 labels; give one label per image"),
        ((PICTURES, [0.5] * 20), "the label 0.5 of image 0 is no class name or number; fix it"),
        ({"left": (PICTURES, TEXTS)}, "a dictionary with the key 'left', which is no split"),
        (TensorDataset(PIXELS), "data gives a tuple; give one of pairs"),
        ((["a", "b"], ["x", "y"]), "2 of 2 images cannot be used, first 'a'"),
    ],
)  # fmt: skip
def test_what_is_no_images_is_refused_in_one_line(data: Any, message: str) -> None:
    with pytest.raises(TaskgraftError, match=message) as error:
        read(data, as_split="train")
    assert "\n" not in str(error.value)
