"""Cameras of 12 bits in 16-bit files: every command that trains finds their white, and the child keeps it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from taskgraft.bundle import Bundle, write_bundle
from taskgraft.data.transforms import Preprocessing
from taskgraft.models.classifier import Classifier, grow
from taskgraft.pipeline.compression import open_compression
from taskgraft.pipeline.merging import open_merge
from taskgraft.pipeline.opening import Opened, open_request
from taskgraft.pipeline.request import CompressionRequest, MergeRequest, Request
from taskgraft.types import Callbacks, Task
from toys import NEW, parent, write_folder

SHADES = Task("shade", ("bright", "dark"))
FOUND = "read as 12 bits, in predict and serve too"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of 12 bits in two classes, a model that knows them, and one that has never seen such files."""
    root = tmp_path_factory.mktemp("depth")
    rng = np.random.default_rng(0)
    for number in range(16):
        name = SHADES.classes[number % 2]
        values = rng.integers(0, 4096 if name == "bright" else 1024, (20, 20)).astype(np.uint16)
        (root / "shades" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(root / "shades" / name / f"{number}.png")
    write_folder(root / "paints", NEW, 16, 1, size=20)
    write_model(root / "known", grow(parent(), SHADES, 0))
    write_model(root / "shapes", parent())
    return root


def write_model(folder: Path, classifier: Classifier) -> None:
    folder.mkdir()
    bundle = Bundle(classifier, Preprocessing(32, "squash", 1.0, "bilinear"), {}, "toy", "0", "test_resnet", "fc")
    write_bundle(folder, bundle, method="finetune", parent={})


def check(opened: Opened, said: list[str]) -> None:
    kept = (opened.student or opened.parent).preprocessing
    assert kept.bits == 12, "the child reads such files alike"
    assert len([line for line in said if FOUND in line]) == 1, said
    images = opened.unlabeled or opened.images.new.train
    assert images is not None
    assert images.pixels.max() > 240, "nearly black"


def test_compress_finds_the_depth_of_its_images(root: Path) -> None:
    said: list[str] = []
    request = CompressionRequest(root / "known", root / "shades")
    check(open_compression(request, None, Callbacks(info=said.append)), said)


def test_merge_finds_the_depth_of_its_images(root: Path, tmp_path: Path) -> None:
    said: list[str] = []
    write_model(tmp_path / "other", Classifier(parent().backbone, grow(parent(), SHADES, 0).linears()[1:], [SHADES]))
    request = MergeRequest(root / "shapes", tmp_path / "other", root / "shades", old_val=root / "shades")
    opened = open_merge(request, None, Callbacks(info=said.append))
    check(opened, said)
    assert opened.images.old_val is not None
    assert opened.images.old_val.pixels.max() > 240, "the labeled images are read like the others"


def test_extend_finds_the_depth_of_unlabeled_images(root: Path) -> None:
    said: list[str] = []
    request = Request(root / "shapes", root / "paints", "paint", "distill", unlabeled=root / "shades")
    check(open_request(request, None, Callbacks(info=said.append)), said)
