"""The embedded synthetic cars: pure functions of their arguments, complete and idempotent folders."""

import itertools
import json
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from taskgraft.synthetic import MAKES, PAINTS, draw_car, write_cars

CAMERAS = ("street", "factory")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("camera", CAMERAS)
@pytest.mark.parametrize("size", [32, 64, 97])
def test_a_picture_is_a_pure_function_of_its_arguments(camera, size):
    first = draw_car("van", "red", 3, size, camera=camera)
    draw_car("bus", "blue", 4, size, camera=camera)  # history must not matter
    assert first.dtype == np.uint8
    assert first.shape == (size, size, 3)
    np.testing.assert_array_equal(first, draw_car("van", "red", 3, size, camera=camera))
    assert np.any(first != draw_car("van", "red", 5, size, camera=camera))


def test_there_are_enough_classes():
    assert len(set(MAKES)) == len(MAKES) >= 12
    assert len(set(PAINTS)) == len(PAINTS) == 10


@pytest.mark.parametrize("camera", CAMERAS)
def test_all_makes_and_paints_differ_in_the_same_scene(camera):
    for seed in range(3):
        shapes = [draw_car(make, "red", seed, camera=camera).astype(int) for make in MAKES]
        colors = [draw_car("van", paint, seed, camera=camera).astype(int) for paint in PAINTS]
        pairs = [*itertools.combinations(shapes, 2), *itertools.combinations(colors, 2)]
        for one, other in pairs:
            changed = np.abs(one - other).max(-1) > 24  # beyond what an edge's rounding could be
            assert 0.01 < changed.mean() < 0.7


def test_the_cameras_see_different_places():
    means = [
        np.mean([draw_car("van", "red", seed, camera=camera).mean((0, 1)) for seed in range(40)], axis=0)
        for camera in CAMERAS
    ]
    assert (means[0] - means[1])[2] > 15  # the hall's lamps are weaker and yellow: above all, blue is missing


@pytest.mark.parametrize(
    ("make", "paint", "camera", "needed"),
    [
        ("tank", "red", "street", "beetle"),
        ("van", "pink", "street", "purple"),
        ("van", "red", "moon", "factory"),
    ],
)
def test_an_unknown_name_is_answered_with_the_right_ones(make, paint, camera, needed):
    with pytest.raises(ValueError, match=needed):
        draw_car(make, paint, 0, camera=camera)


@pytest.mark.parametrize(("label", "classes"), [("make", MAKES), ("paint", PAINTS)])
def test_a_folder_has_the_asked_number_of_pictures_of_each_class(tmp_path, label, classes):
    folder = write_cars(tmp_path / "cars", label=label, train=2, val=1, seed=0, size=32)
    for split, count in (("train", 2), ("val", 1)):
        result = {path.name: len(list(path.glob("*.png"))) for path in (folder / split).iterdir()}
        assert result == dict.fromkeys(classes, count)
    images = [image for name, image in contents(folder).items() if name.endswith(".png")]
    assert len(set(images)) == 3 * len(classes)
    with Image.open(next(folder.rglob("*.png"))) as image:
        assert (image.size, image.mode) == ((32, 32), "RGB")
    assert json.loads((folder / ".drawn.json").read_text())["synthetic"] is True


def test_the_other_attribute_is_independent_of_the_label(tmp_path):
    folder = write_cars(tmp_path / "cars", label="make", train=40, val=0, seed=1, size=16)
    full = np.stack([np.asarray(Image.open(path)) for path in folder.rglob("*.png")])
    assert full.reshape(len(full), -1).std(0).min() > 10  # no pixel gives a class away by being constant


def test_writing_again_changes_nothing_and_draws_what_is_missing(tmp_path):
    arguments = {"label": "paint", "train": 2, "val": 1, "seed": 5, "size": 32}
    folder = write_cars(tmp_path / "cars", **arguments)
    before, times = contents(folder), {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")}
    write_cars(folder, **arguments)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")} == times
    next(folder.rglob("*.png")).unlink()
    write_cars(folder, **arguments)
    assert contents(folder) == before
    assert contents(write_cars(tmp_path / "elsewhere", **arguments)) == before


def test_more_pictures_begin_with_the_same_ones(tmp_path):
    few = write_cars(tmp_path / "few", label="make", train=1, val=1, seed=5, size=32)
    many = write_cars(tmp_path / "many", label="make", train=2, val=1, seed=5, size=32)
    kept = contents(many)
    assert all(kept[name] == data for name, data in contents(few).items() if name.endswith(".png"))


def test_a_folder_with_anything_else_is_left_alone(tmp_path):
    arguments = {"label": "make", "train": 1, "val": 1, "size": 32}
    folder = write_cars(tmp_path / "cars", seed=1, **arguments)
    before = contents(folder)
    with pytest.raises(FileExistsError, match=r"seed=1 \(requested: 2\)"):
        write_cars(folder, seed=2, **arguments)
    assert contents(folder) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not touch")
    with pytest.raises(FileExistsError, match="not drawn by taskgraft"):
        write_cars(tmp_path / "mine", seed=1, **arguments)
    assert list(contents(tmp_path / "mine")) == ["thesis.txt"]


@pytest.mark.parametrize("wrong", [{"label": "model"}, {"train": 0}, {"val": -1}, {"size": 8}])
def test_a_wrong_argument_is_refused_before_anything_is_written(tmp_path, wrong):
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        write_cars(tmp_path / "cars", **{"label": "make", "train": 1, "val": 1, "seed": 0} | wrong)
    assert not (tmp_path / "cars").exists()


def test_drawing_takes_seconds_not_minutes():
    start = time.process_time()
    for seed in range(100):
        draw_car(MAKES[seed % 12], PAINTS[seed % 10], seed)
    assert time.process_time() - start < 1.0  # 100 a second; 1,400 were measured on one core
