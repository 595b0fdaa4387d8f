"""Networks for gray images, from whatever timm writes; other numbers of channels are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models import get_model

import taskgraft
from taskgraft.bundle import open_parent
from taskgraft.bundle.in_memory import describe_classifier
from taskgraft.errors import CheckpointError
from toys import OLD

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
LINE = "32 squash bilinear mean=0.5 std=0.25"


def network(arch: str = "test_resnet", channels: int = 1, **options: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return timm.create_model(arch, num_classes=len(OLD.classes), in_chans=channels, **options).eval()


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    file = tmp_path / "labels.txt"
    file.write_text("\n".join(OLD.classes))
    return file


def gray(mean: float = 0.5, std: float = 0.25) -> Tensor:
    """The image as a loader of timm gives it to a network of one channel."""
    return ((torch.from_numpy(np.asarray(IMAGE.convert("L"), np.float32)) / 255 - mean) / std)[None, None]


@pytest.mark.parametrize(
    ("arch", "options"), [("test_resnet", {}), ("test_vit", {"img_size": 32}), ("test_efficientnet", {})]
)
def test_a_file_of_weights_for_gray_images_is_opened(
    arch: str, options: dict[str, Any], tmp_path: Path, labels: Path
) -> None:
    net = network(arch, **options)
    torch.save(
        {"state_dict": {f"module.{name}": value for name, value in net.state_dict().items()}}, tmp_path / "x.pth"
    )
    bundle = open_parent(tmp_path / "x.pth", arch=arch, labels=labels, preprocessing=LINE)
    with torch.no_grad():
        expected = net(gray()).softmax(1).numpy()
    np.testing.assert_allclose(bundle.predict(IMAGE).probabilities[bundle.tasks[0].name], expected, atol=1e-6)


def test_timms_normalization_is_averaged_and_that_is_said(tmp_path: Path, labels: Path) -> None:
    torch.save(network("test_efficientnet").state_dict(), tmp_path / "x.pth")
    bundle = open_parent(tmp_path / "x.pth", arch="test_efficientnet", labels=labels)
    assert (bundle.preprocessing.mean, bundle.preprocessing.std) == ((0.449,), (0.226,))
    assert "in gray" in bundle.notes[-1]
    assert "averaged for one channel" in bundle.notes[-1]


def test_a_folder_of_timm_for_gray_images_is_opened(tmp_path: Path) -> None:
    net = network()
    timm.models.save_for_hf(net, str(tmp_path / "model"), model_config={"label_names": list(OLD.classes)})
    bundle = open_parent(tmp_path / "model", preprocessing=LINE)
    assert bundle.model_args["in_chans"] == 1
    with torch.no_grad():
        expected = net(gray()).softmax(1).numpy()
    np.testing.assert_allclose(bundle.predict(IMAGE).probabilities[bundle.tasks[0].name], expected, atol=1e-6)


def test_a_network_of_torchvision_for_gray_images_is_converted(tmp_path: Path) -> None:
    net = get_model("mobilenet_v3_small", num_classes=3).eval()
    stem = net.get_submodule("features.0.0")
    assert isinstance(stem, nn.Conv2d)
    net.set_submodule("features.0.0", nn.Conv2d(1, stem.out_channels, 3, stride=2, padding=1, bias=False))
    torch.save(net.state_dict(), tmp_path / "x.pth")
    (tmp_path / "labels.txt").write_text("\n".join(OLD.classes))
    bundle = open_parent(
        tmp_path / "x.pth", arch="mobilenetv3_small_100", labels=tmp_path / "labels.txt", preprocessing=LINE
    )
    with torch.no_grad():
        expected = net(gray()).softmax(1).numpy()
    np.testing.assert_allclose(bundle.predict(IMAGE).probabilities[bundle.tasks[0].name], expected, atol=1e-5)


def test_a_wrapped_network_for_gray_images_becomes_a_bundle(tmp_path: Path) -> None:
    classifier = taskgraft.wrap(network(), "fc", [OLD])
    bundle = describe_classifier(classifier)
    again = open_parent(bundle.save_pretrained(tmp_path / "model"))
    assert again.model_args == {"in_chans": 1}
    assert again.preprocessing.channels == 1


@pytest.mark.parametrize("channels", [2, 4])
def test_other_numbers_of_channels_are_refused(channels: int, tmp_path: Path, labels: Path) -> None:
    reason = f"its network takes {channels} channels, but images are opened with 3 .RGB. or 1 .gray."
    torch.save(network(channels=channels).state_dict(), tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=reason):
        open_parent(tmp_path / "x.pth", arch="test_resnet", labels=labels)
    timm.models.save_for_hf(network(channels=channels), str(tmp_path / "model"), model_args={"in_chans": channels})
    with pytest.raises(CheckpointError, match=reason):
        open_parent(tmp_path / "model", labels=labels)


def test_a_bundle_whose_normalization_is_of_other_channels_is_refused(alice: Path, tmp_path: Path) -> None:
    folder = open_parent(alice).save_pretrained(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"] |= {"mean": [0.5], "std": [0.5]}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="mean and std are for 1 channels, its network is for 3"):
        open_parent(folder)
