"""A parent that takes gray images in one channel: extended, opened by timm, compressed, exported, served."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import taskgraft
from servers import running
from taskgraft.commands.export import export
from taskgraft.config import TrainingConfig
from taskgraft.types import Callbacks
from toys import NEW, OLD, write_folder

CONFIG = TrainingConfig(
    steps=4, batch_size=8, head_steps=2, eval_every=4, precision="fp32", augment="randaugment", lr=0.01
)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("gray")
    write_folder(root / "new/train", NEW, 16, 3, size=24)
    write_folder(root / "new/val", NEW, 8, 4, size=24)
    write_folder(root / "old", OLD, 9, 2, size=24)
    return root


@pytest.fixture(scope="module")
def child(images: Path) -> Path:
    torch.save(timm.create_model("test_resnet", num_classes=3, in_chans=1).state_dict(), images / "parent.pth")
    (images / "labels.txt").write_text("\n".join(OLD.classes))
    said: list[str] = []
    taskgraft.extend(
        images / "parent.pth", images / "new", images / "child", task="paint", method="distill", config=CONFIG,
        arch="test_resnet", labels=images / "labels.txt", preprocessing="24 squash bilinear mean=0.5 std=0.25",
        old_val=images / "old", check_parent=False, cache=images / "cache", callbacks=Callbacks(info=said.append),
    )  # fmt: skip
    assert any("changes of saturation have no effect" in line for line in said), "what randaugment cannot do"
    return images / "child"


def test_plain_timm_loads_the_child(child: Path, images: Path) -> None:
    net = timm.create_model(f"local-dir:{child}", pretrained=True).eval()
    config: Any = net.pretrained_cfg
    assert (tuple(config["input_size"]), tuple(config["mean"])) == ((1, 24, 24), (0.5,))
    files = sorted((images / "old").rglob("*.png"))
    pixels = np.stack([np.asarray(Image.open(file).convert("L"), np.float32) for file in files])[:, None]
    with torch.no_grad():
        expected = net((torch.from_numpy(pixels) / 255 - 0.5) / 0.25)[:, :3].softmax(1).numpy()
    found = taskgraft.open_parent(child).predict(files, raw=True).probabilities["parent"]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert taskgraft.evaluate(child, images / "old", html=images / "page.html", cache=images / "cache")["images"] == 9


def test_a_gray_model_is_compressed_into_another_architecture(child: Path, images: Path) -> None:
    run = taskgraft.compress(
        child, images / "new", images / "small", student="test_efficientnet", check_parent=False,
        config=TrainingConfig(steps=1, batch_size=8, eval_every=1, precision="fp32"),
    )  # fmt: skip
    assert run.bundle.model_args == {"in_chans": 1}


@pytest.mark.parametrize(("file_format", "uint8"), [("onnx", True), ("pt2", False)])
def test_a_gray_model_is_exported(child: Path, images: Path, tmp_path: Path, file_format: str, uint8: bool) -> None:
    result = export(child, tmp_path / "out", format=file_format, uint8_input=uint8, check=images / "old")
    assert result.refused is None
    assert result.description["input"]["shape"] == (["batch", 24, 24, 1] if uint8 else ["batch", 1, 24, 24])


def test_a_gray_model_is_served(child: Path) -> None:
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (24, 24, 3), dtype=np.uint8))
    file = io.BytesIO()
    image.save(file, "PNG")
    pixels = np.asarray(image.convert("L"))[None, :, :, None]
    tensor = {"name": "image", "datatype": "UINT8", "shape": list(pixels.shape), "data": pixels.flatten().tolist()}
    with running(child) as server:
        encoded = server.client.post("/predict", content=file.getvalue()).json()["images"][0]["tasks"]["paint"]
        raw = server.client.post("/v2/models/both/infer", json={"inputs": [tensor]}).json()
        wrong = server.client.post("/v2/models/both/infer", json={"inputs": [{**tensor, "shape": [1, 24, 24, 3]}]})
    paint = next(output for output in raw["outputs"] if output["name"] == "probabilities_paint")
    assert max(paint["data"]) == pytest.approx(encoded["probability"], abs=1e-5)
    assert wrong.status_code == 400
    assert "must be [B, 24, 24, 1]" in wrong.json()["error"]


def test_gray_and_color_do_not_merge(child: Path, alice: Path, images: Path) -> None:
    with pytest.raises(taskgraft.InputError, match=r"takes gray images and .* takes RGB images"):
        taskgraft.merge(child, alice, images / "merged", images=images / "new")
