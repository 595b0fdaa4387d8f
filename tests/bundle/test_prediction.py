"""`bundle.predict`: the same answer for a file, Pillow, NumPy and a tensor; what is no image is refused in one line."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from taskgraft import DataError, InputError, MissingDependency, predict
from taskgraft.bundle import Bundle, Prediction
from taskgraft.data import Preprocessing, normalize
from taskgraft.models.classifier import grow
from toys import NEW, OLD, make_images, parent, write_folder

pytestmark = pytest.mark.usefixtures("no_charts")

SQUARE = Preprocessing(32, "squash", 1.0, "bilinear", (0.5,) * 3, (0.25,) * 3)
CARD = {"classes": list(OLD.classes), "temperature": 2.0}
IMAGES = make_images(6, OLD, 1)
PIXELS = IMAGES.pixels.numpy()


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle(grow(parent(), NEW), SQUARE, {}, "here", "0", "test_resnet", "fc", cards={"shape": CARD, "paint": {}})


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = write_folder(tmp_path_factory.mktemp("files"), OLD, 6, 1)
    return [folder / OLD.classes[row % 3] / f"{row}.png" for row in range(6)]


def test_every_kind_of_input_gives_what_predict_gives(bundle: Bundle, files: list[Path]) -> None:
    logits = predict(bundle.classifier, IMAGES).logits
    given: list[Any] = [
        files, [str(path) for path in files], [Image.open(path) for path in files], PIXELS, list(PIXELS),
        normalize(IMAGES, 0, 6), [files[0], Image.fromarray(PIXELS[1]), *PIXELS[2:]],
    ]  # fmt: skip
    for images in given:
        for size in (2, 32):
            result = bundle.predict(images, raw=True, batch_size=size)
            for task in bundle.tasks:
                expected = torch.from_numpy(logits[task.name]).double().softmax(1).numpy()
                np.testing.assert_allclose(result.probabilities[task.name], expected, atol=1e-6)
                assert result.labels[task.name] == [task.classes[row] for row in expected.argmax(1)]
    assert bundle.predict(files).names == tuple(map(str, files))


def test_one_image_and_the_forms_of_an_array(bundle: Bundle) -> None:
    gray = PIXELS[0][:, :, 0]
    one, *others = (bundle.predict(image) for image in (gray, gray[:, :, None], np.stack([gray] * 3, 2)))
    for other in others:
        np.testing.assert_array_equal(other.probabilities["paint"], one.probabilities["paint"])
    assert (len(one), one.names) == (1, ("0",))


def test_probabilities_are_calibrated_and_modes_are_restored(bundle: Bundle) -> None:
    bundle.classifier.train()
    calibrated, raw = bundle.predict(PIXELS), bundle.predict(PIXELS, raw=True)
    assert bundle.classifier.training
    assert calibrated.labels == raw.labels
    softer = np.sqrt(raw.probabilities["shape"])
    np.testing.assert_allclose(calibrated.probabilities["shape"], softer / softer.sum(1, keepdims=True), rtol=1e-6)
    np.testing.assert_array_equal(calibrated.probabilities["paint"], raw.probabilities["paint"])


def test_joint_softmax_answers_one_task(bundle: Bundle) -> None:
    classifier = grow(parent(), NEW)
    classifier.softmax = "joint"
    with torch.no_grad():
        classifier.linears()[1].bias.add_(100)
    result = replace(bundle, classifier=classifier).predict(PIXELS)
    assert result.labels["shape"] == [None] * 6
    assert None not in result.labels["paint"]
    assert "shape – " in repr(result[0])


def test_what_a_notebook_shows(bundle: Bundle) -> None:
    many, one = bundle.predict(PIXELS), bundle.predict(PIXELS[0])
    assert repr(many) == "Prediction(6 images; tasks: shape, paint)"
    label, rate = one.labels["shape"][0], one.probabilities["shape"].max()
    assert repr(one).startswith(f"Prediction(shape {label} {rate:.1%}, paint ")
    assert [repr(row) for row in many] == [repr(many[row]) for row in range(6)]
    shown = replace(many, names=("<b>", *many.names[1:]))._repr_html_()
    assert shown.count("<tr>") == 7
    assert "&lt;b&gt;" in shown
    assert "<b>" not in shown
    assert "25 images, the first 20" in bundle.predict([PIXELS[0]] * 25)._repr_html_()


def test_data_frame(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    result: Prediction = bundle.predict(PIXELS)
    pytest.importorskip("pandas")
    frame = result.to_frame()
    assert list(frame.columns) == ["id", "shape.label", "shape.probability", "paint.label", "paint.probability"]
    assert frame["paint.label"].tolist() == result.labels["paint"]
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pandas" else find(name))
    with pytest.raises(MissingDependency, match=r"to_frame\(\) needs pandas; install with: pip install pandas"):
        result.to_frame()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (lambda: [], "the list of images is empty; give at least one"),
        (lambda: [PIXELS[0], 3], "image 1 is of type int; give a path"),
        (lambda: PIXELS[0] / 255, r"an array \[32, 32, 3\] of float64; give \[H, W, C\] of uint8"),
        (lambda: PIXELS[0].transpose(2, 0, 1), r"an array \[3, 32, 32\] of uint8; give"),
        (lambda: torch.from_numpy(PIXELS), r"a tensor \[6, 32, 32, 3\] of uint8; give a preprocessed float"),
        (lambda: torch.zeros(3, 32, 32), r"a tensor \[3, 32, 32\] of float32; give .* \[B, 3, 32, 32\]"),
        (lambda: torch.full((2, 3, 32, 32), torch.nan), "2 of 2 images have values that are not finite; leave them"),
    ],
)
def test_what_is_no_image_is_refused(bundle: Bundle, images: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        bundle.predict(images())


def test_image_that_cannot_be_read_is_named(bundle: Bundle, files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "cut.png").write_bytes(files[0].read_bytes()[:60])
    for broken, reason in (
        (tmp_path / "cut.png", "damaged: "),
        (tmp_path, "not a regular file"),
        ("no.png", "No such"),
    ):
        with pytest.raises(DataError, match=rf"image .*{reason}.*; leave it out, or use taskgraft.predict"):
            bundle.predict([*files, broken])
    with pytest.raises(DataError, match="image 0: 3x9 is smaller than 4 pixels"):
        bundle.predict(np.zeros((9, 3, 3), np.uint8))
    with Image.open(tmp_path / "cut.png") as image, pytest.raises(DataError, match=r"cut\.png: damaged: "):
        bundle.predict(image)
    network = replace(bundle, classifier=grow(parent("test_vit", img_size=32, dynamic_img_size=False), NEW))
    with pytest.raises(InputError, match=r"cannot take inputs of shape \[3, 48, 48\]: .*; give them as it was"):
        network.predict(torch.zeros(1, 3, 48, 48))
