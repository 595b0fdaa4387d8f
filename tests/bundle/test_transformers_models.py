"""Models of Hugging Face transformers open as networks of timm that give the same logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import taskgraft
from taskgraft import TrainingConfig
from taskgraft.bundle.transformers_models import read_preprocessor
from taskgraft.data import Preprocessing
from taskgraft.errors import TaskgraftError
from toys import NEW, OLD, write_folder

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")  # transformers deprecates parts of itself while it is imported
CLASSES = {
    "num_labels": 3,
    "id2label": dict(enumerate(OLD.classes)),
    "label2id": {c: i for i, c in enumerate(OLD.classes)},
}
VIT = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40, "image_size": 64}
SWIN = {"image_size": 64, "embed_dim": 12, "depths": [2, 2], "num_heads": [2, 3], "window_size": 4}
SIZES: dict[str, dict[str, Any]] = {
    "ViT": VIT, "DeiT": {**VIT, "patch_size": 8}, "Swin": SWIN,
    "ConvNext": {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 2, 1, 1], "layer_scale_init_value": 0.5},
    "ResNet": {"layer_type": "basic", "hidden_sizes": [64, 128, 256, 512], "depths": [1, 2, 1, 1]},
}  # fmt: skip


def make(kind: str, **changes: Any) -> Any:
    """A model of transformers with random weights, also where they begin as constants."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**SIZES[kind], **CLASSES, **changes})
    model = getattr(transformers, f"{kind}ForImageClassification")(config).eval()
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.add_(torch.rand_like(value) * 0.2)
    return model


def test_a_model_for_gray_images_is_opened(tmp_path: Path) -> None:
    model = make("ViT", num_channels=1)
    model.save_pretrained(tmp_path)
    bundle, images = taskgraft.open_parent(tmp_path), torch.randn(3, 1, 64, 64)
    with torch.inference_mode():
        expected, found = model(pixel_values=images).logits, bundle.classifier.eval()(images)[bundle.tasks[0].name]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert bundle.preprocessing.channels == 1


@pytest.mark.parametrize("kind", SIZES)
def test_logits_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    model = make(kind)
    model.save_pretrained(tmp_path)
    bundle = taskgraft.open_parent(tmp_path)
    assert [task.classes for task in bundle.tasks] == [OLD.classes]
    images = torch.randn(3, 3, 64, 64)
    with torch.inference_mode():
        expected, found = model(pixel_values=images).logits, bundle.classifier.eval()(images)[bundle.tasks[0].name]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert float(expected.std()) > 1e-2  # not a comparison of zeros
    assert f"{kind}ForImageClassification of transformers, converted to timm's {bundle.arch}" in bundle.notes[0]


def test_bundle_of_a_converted_model_opens_again(tmp_path: Path) -> None:
    make("Swin").save_pretrained(tmp_path / "swin")
    bundle = taskgraft.open_parent(tmp_path / "swin", preprocessing="64 squash bilinear half")
    again = taskgraft.open_parent(bundle.save_pretrained(tmp_path / "bundle"))
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        logits = [one.classifier.eval()(images)["swin"] for one in (bundle, again)]
    assert torch.equal(*logits)


@pytest.mark.usefixtures("no_charts")
def test_model_in_memory_is_extended_and_its_child_opens_as_a_pipeline(tmp_path: Path) -> None:
    images = write_folder(tmp_path / "paint", NEW, 16, 3)
    config = TrainingConfig(steps=2, batch_size=4, head_steps=2, eval_every=2, precision="fp32")
    run = taskgraft.extend(
        make("ViT"), images, tmp_path / "out", task="paint", method="frozen", config=config,
        preprocessing="64 squash bilinear half",
    )  # fmt: skip
    assert [task.name for task in run.tasks] == ["ViTForImageClassification", "paint"]
    labels = [name for task in run.tasks for name in task.classes]
    file = next(images.rglob("*.png"))
    pipeline = transformers.pipeline("image-classification", model=str(run.out), top_k=7)
    scores = {entry["label"]: entry["score"] for entry in pipeline(str(file))}
    with torch.inference_mode():
        net = timm.create_model(f"local-dir:{run.out}", pretrained=True).eval()
        image = taskgraft.data.open_images(images, "paint", run.bundle.preprocessing, seed=0, as_split="train")
        row = [name for name, _ in image.splits()].index(file.relative_to(images).as_posix())
        assert image.train
        expected = net(taskgraft.data.normalize(image.train, row, row + 1)).softmax(1)[0].tolist()
    assert scores == pytest.approx(dict(zip(labels, expected, strict=True)), abs=1e-4)


def test_what_timm_cannot_have_is_refused(tmp_path: Path) -> None:
    make("ViT").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for change, message in (
        ({"hidden_act": "relu"}, "hidden_act is 'relu', which timm's network of this kind cannot have"),
        ({"hidden_size": "24"}, "hidden_size is '24'"),
        ({"num_hidden_layers": 3}, "is not a vit_base_patch16_224"),
        ({"architectures": ["BeitForImageClassification"]}, "but BeitForImageClassification of Hugging Face transform"),
        ({"architectures": ["DeiTForImageClassificationWithTeacher"]}, "but DeiTForImageClassificationWithTeacher of"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(TaskgraftError, match=message) as error:
            taskgraft.open_parent(tmp_path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        ("ViTImageProcessor", "224 squash bilinear half"),
        ("ConvNextImageProcessor", "384 squash bicubic imagenet"),
        ("DeiTImageProcessor", "224 center:0.875 bicubic imagenet"),
    ],
)
def test_processor_is_the_preprocessing(processor: str, expected: str, tmp_path: Path) -> None:
    make("ConvNext").save_pretrained(tmp_path)
    options = (
        {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]} if "ViT" not in processor else {}
    )
    getattr(transformers, processor)(**options).save_pretrained(tmp_path)
    bundle = taskgraft.open_parent(tmp_path)
    assert bundle.preprocessing.to_text() == expected
    assert bundle.preprocessing_source == f"from {tmp_path / 'preprocessor_config.json'}"


def test_old_and_odd_processors() -> None:
    old = {"feature_extractor_type": "ConvNextFeatureExtractor", "size": 224, "crop_pct": 0.875, "resample": 3}
    assert read_preprocessor("p.json", old)[0]["crop_pct"] == 0.875
    cut = {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}, "do_center_crop": True}
    assert Preprocessing().size == read_preprocessor("p.json", cut)[0]["input_size"][1]
    with pytest.raises(TaskgraftError, match=r"size .* is not one square; give --preprocessing"):
        read_preprocessor("p.json", {"size": {"height": 224, "width": 320}})
