"""Checkpoints as programs write them: wrapped, averaged, of old layouts, with another head; opened or explained."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.utils import CheckpointSaver, ModelEmaV3
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import taskgraft
from taskgraft.bundle import Bundle, open_parent
from taskgraft.errors import CheckpointError, InputError

NAMES = ("cat", "dog", "eel")
ARCH = "test_resnet"


def net(arch: str = ARCH, seed: int = 2, **options: Any) -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model(arch, num_classes=3, **options).eval()


def state(seed: int = 2) -> dict[str, Tensor]:
    return dict(net(seed=seed).state_dict())


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in tensors.items()}


def opened(folder: Path, value: Any, arch: str | None = ARCH, **options: Any) -> Bundle:
    torch.save(value, folder / "x.pth")
    (folder / "labels.txt").write_text("\n".join(NAMES))
    return open_parent(folder / "x.pth", arch=arch, **{"labels": folder / "labels.txt", **options})


def logits(model: nn.Module, size: int = 32) -> Tensor:
    with torch.no_grad():
        outputs = model.eval()(torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0)))
    return next(iter(outputs.values())) if isinstance(outputs, dict) else outputs


def assert_same(bundle: Bundle, model: nn.Module, size: int = 32) -> None:
    torch.testing.assert_close(logits(bundle.classifier, size), logits(model, size), rtol=1e-5, atol=1e-6)


def test_checkpoint_of_timms_training_script(tmp_path: Path) -> None:
    """With its arguments, the optimizer's state, a metric that is a NumPy scalar, and averaged weights."""
    model, args = net(), argparse.Namespace(model=ARCH, num_classes=3)
    optimizer = torch.optim.AdamW(model.parameters())
    average = ModelEmaV3(net(seed=3))
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    saver = CheckpointSaver(model, optimizer, args, model_ema=average, checkpoint_dir=str(tmp_path), recovery_dir="")
    saver.save_checkpoint(1, metric=np.float64(0.5))
    (tmp_path / "labels.txt").write_text("\n".join(NAMES))
    bundle = open_parent(tmp_path / "last.pth.tar", labels=tmp_path / "labels.txt")
    assert_same(bundle, average.module)
    assert bundle.notes[:2] == (
        f"architecture {ARCH} from its entry 'arch'",
        "weights from its entry 'state_dict_ema'; averaged weights, which are those that training programs evaluate; "
        "it also has the network in 'state_dict'",
    )


ENTRIES: dict[str, Callable[[dict[str, Tensor]], dict[str, Any]]] = {
    **{key: lambda tensors, key=key: {"epoch": 3, key: tensors} for key in ("state_dict", "model_state_dict", "net")},
    **{key: lambda tensors, key=key: {"epoch": 3, key: tensors} for key in ("model", "model_ema", "ema", "generator")},
    "model.state_dict": lambda tensors: {"model": {"state_dict": tensors, "epoch": 3}},
    "ema.module": lambda tensors: {"ema": {"module": tensors, "decay": 0.9}, "state_dict": state(seed=9)},
}


@pytest.mark.parametrize("entry", ENTRIES)
def test_entries_are_searched(tmp_path: Path, entry: str) -> None:
    bundle = opened(tmp_path, ENTRIES[entry](state()))
    assert_same(bundle, net())
    assert bundle.notes[0].startswith(f"weights from its entry '{entry}'")


PREFIXES = (
    "module.",
    "_orig_mod.module.",
    "module._orig_mod.",
    "model.",
    "net.",
    "a.b.",
    "model._orig_mod.module.backbone.",
)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_of_any_nesting_are_removed(tmp_path: Path, prefix: str) -> None:
    bundle = opened(tmp_path, {"state_dict": prefixed(prefix, state())})
    assert_same(bundle, net())
    assert f"prefix '{prefix}' removed from the names" in bundle.notes


def test_compiled_and_averaged_modules(tmp_path: Path) -> None:
    assert_same(opened(tmp_path, torch.compile(net()).state_dict()), net())
    bundle = opened(tmp_path, AveragedModel(net()).state_dict())
    assert_same(bundle, net())
    assert "left out, not of the network: n_averaged" in bundle.notes


def test_what_lies_outside_of_the_prefix_is_left_out_and_named(tmp_path: Path) -> None:
    others = {"criterion.weight": torch.ones(3), "normalize.mean": torch.zeros(3), "train.extra": torch.ones(2, 2)}
    bundle = opened(tmp_path, {"state_dict": {**prefixed("model.", state()), **others}})
    assert_same(bundle, net())
    assert (
        "left out, not of the network: criterion.weight, normalize.mean, train.extra; "
        "a normalization among them belongs into --preprocessing"
    ) in bundle.notes


def test_counters_and_losses_within_the_network_are_left_out(tmp_path: Path) -> None:
    others = {"layer1.0.total_ops": torch.zeros(1, dtype=torch.float64), "criterion.weight": torch.ones(3)}
    bundle = opened(tmp_path, {**state(), **others})
    assert "left out, not of the network: criterion.weight, layer1.0.total_ops" in bundle.notes


def test_student_is_preferred_to_its_teacher(tmp_path: Path) -> None:
    bundle = opened(tmp_path, {**prefixed("teacher.", state(seed=9)), **prefixed("student.", state())})
    assert_same(bundle, net())
    assert "prefix 'student.' removed from the names; it also has the network in 'teacher'" in bundle.notes


def test_averaged_weights_without_statistics_are_not_taken(tmp_path: Path) -> None:
    shadow = {name: value + 1 for name, value in net().named_parameters()}
    bundle = opened(tmp_path, {"state_dict": state(), "ema": shadow})
    assert_same(bundle, net())
    assert "the averaged weights in 'ema' were not taken: they are not the whole network" in bundle.notes


@pytest.mark.parametrize("names", [("fc.1",), ("head",), ("classifier.fc",)])
def test_a_single_linear_layer_of_another_name_is_the_classifier(tmp_path: Path, names: tuple[str]) -> None:
    renamed = {name.replace("fc.", f"{names[0]}."): value for name, value in state().items()}
    bundle = opened(tmp_path, renamed)
    assert_same(bundle, net())
    assert f"classifier from '{names[0]}', taken as a plain linear layer, which is 'fc' in {ARCH}" in bundle.notes


def test_backbone_and_head_that_are_saved_side_by_side(tmp_path: Path) -> None:
    tensors = state()
    head = {name: tensors.pop(f"fc.{name}") for name in ("weight", "bias")}
    assert_same(opened(tmp_path, {"backbone": tensors, "head": head}), net())
    assert_same(opened(tmp_path, {"state_dict": {**prefixed("backbone.", tensors), **prefixed("head.", head)}}), net())


def test_another_head_is_told_with_the_lines_that_wrap_it(tmp_path: Path) -> None:
    model = net()
    width = model.get_parameter("fc.weight").shape[1]
    model.set_submodule("fc", nn.Sequential(nn.Linear(width, 8), nn.ReLU(), nn.Linear(8, 3)))
    with pytest.raises(CheckpointError) as caught:
        opened(tmp_path, model.state_dict())
    assert str(caught.value).partition(" is ")[2] == (
        f"the same backbone as {ARCH} with another head (fc.0.bias, fc.0.weight, fc.2.bias, fc.2.weight), not one "
        f"linear layer; with net = timm.create_model('{ARCH}'), net.fc = … and net.load_state_dict(…), wrap it in "
        "Python: taskgraft.wrap(net, 'fc.2', [taskgraft.Task('parent', CLASSES)])"
    )


def test_a_backbone_alone_is_not_a_parent_but_a_start(tmp_path: Path) -> None:
    tensors = {name: value for name, value in state().items() if not name.startswith("fc.")}
    with pytest.raises(
        CheckpointError, match=rf"is the backbone of {ARCH} without its classifier.*train with --weights"
    ):
        opened(tmp_path, tensors)
    backbone = opened(tmp_path, tensors, labels=None, unnamed=True).classifier.backbone
    assert torch.equal(backbone.get_parameter("layer1.0.conv1.weight"), tensors["layer1.0.conv1.weight"])


def test_heads_of_a_network_that_compares_images_are_left_out_of_a_start(tmp_path: Path) -> None:
    """As DINO and SimCLR save them: a backbone beside, or with, a head of several layers."""
    backbone = {name: value for name, value in state().items() if not name.startswith("fc.")}
    head = {"head.mlp.0.weight": torch.ones(9, 9), "head.last_layer.weight_g": torch.ones(5, 1)}
    dino = {"teacher": {**prefixed("backbone.", backbone), **head}, "epoch": 3}
    simclr = {"state_dict": {**backbone, "fc.0.weight": torch.ones(256, 256), "fc.2.weight": torch.ones(128, 256)}}
    for checkpoint, name in ((dino, "head.mlp.0.weight"), (simclr, "fc.2.weight")):
        bundle = opened(tmp_path, checkpoint, labels=None, unnamed=True)
        assert torch.equal(bundle.classifier.backbone.get_parameter("layer1.0.conv1.weight"),
                           backbone["layer1.0.conv1.weight"])  # fmt: skip
        assert any(note.startswith("left out, not of the network") and name in note for note in bundle.notes)
    with pytest.raises(CheckpointError, match=r"another head \(layer1\.1\.conv1"):  # of a deeper network
        opened(tmp_path, {**backbone, "layer1.1.conv1.weight": torch.ones(2, 2)}, labels=None, unnamed=True)


@pytest.mark.parametrize("name", ["neck.weight", "layer1.0.ema.weight"])
def test_layers_that_the_network_lacks_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=rf"1 tensors differ, first {name}.*it is {ARCH} with layers of its own"):
        opened(tmp_path, {**state(), name: torch.ones(2, 2)})


def test_positional_embeddings_are_resampled_as_timm_does(tmp_path: Path) -> None:
    tensors = net("test_vit").state_dict()  # of 160 px
    with torch.random.fork_rng():
        expected = timm.create_model(
            "test_vit", pretrained=True, num_classes=3, img_size=96,
            pretrained_cfg_overlay={"state_dict": dict(tensors), "num_classes": 3},
        )  # fmt: skip
    bundle = opened(tmp_path, tensors, "test_vit", preprocessing="96 squash")
    assert_same(bundle, expected, 96)
    assert "resampled by timm to the shapes of this input size: pos_embed from 1x101x64 to 1x37x64" in bundle.notes
    bundle = opened(tmp_path, net("test_vit", img_size=96).state_dict(), "test_vit")
    assert_same(bundle, net("test_vit", img_size=96), 96)
    assert bundle.preprocessing.size == 96
    assert "but for the size 96 of its positional embeddings" in bundle.preprocessing_source


def test_patches_of_another_architecture_are_not_resampled(tmp_path: Path) -> None:
    tensors = net("test_vit").state_dict()
    tensors["patch_embed.proj.weight"] = tensors["patch_embed.proj.weight"][..., ::2, ::2].contiguous()
    with pytest.raises(CheckpointError, match=r"is not a test_vit: 1 tensors differ, first patch_embed.*right --arch"):
        opened(tmp_path, tensors, "test_vit")


def test_old_layouts_are_converted_as_timm_does(tmp_path: Path) -> None:
    """ConvNeXt as its authors published it: other names, and a layer norm at another place."""
    model = net("test_convnext")
    old = {
        "stem.0.": "downsample_layers.0.0.", "stem.1.": "downsample_layers.0.1.", "head.fc.": "head.",
        "head.norm.": "norm.", "conv_dw.": "dwconv.", "mlp.fc1.": "pwconv1.", "mlp.fc2.": "pwconv2.", ".blocks.": ".",
    }  # fmt: skip
    tensors = {}
    for name, value in model.state_dict().items():
        for new, before in old.items():
            name = name.replace(new, before) if not (new == "head.norm." and "downsample" in name) else name
        parts = name.split(".")
        if parts[2:3] == ["downsample"]:
            name = f"downsample_layers.{parts[1]}." + ".".join(parts[3:])
        tensors[name] = value
    bundle = opened(tmp_path, {"model": tensors}, "test_convnext")
    assert_same(bundle, model)
    assert "names and layout converted by timm's own reader of test_convnext" in bundle.notes


TORCHVISION = pytest.importorskip("torchvision").models


def test_torchvision_of_the_same_layout_loads_as_it_is(tmp_path: Path) -> None:
    model = TORCHVISION.resnet18(num_classes=3).eval()
    args = argparse.Namespace(model="resnet18", weights=None)
    assert_same(opened(tmp_path, {"model": model.state_dict(), "args": args}, None), model)


@pytest.mark.parametrize(
    ("builder", "arch"),
    [
        ("mobilenet_v3_small", "mobilenetv3_small_100"),
        ("mobilenet_v2", "mobilenetv2_100"),
        pytest.param("swin_t", "swin_tiny_patch4_window7_224", marks=pytest.mark.slow),
    ],
)
def test_torchvision_of_another_layout_is_converted(builder: str, arch: str, tmp_path: Path) -> None:
    model = TORCHVISION.get_model(builder, weights=None, num_classes=3).eval()
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point() and value.dim() == 1:
                value.add_(torch.rand_like(value) * 0.1)  # no two tensors of a shape are equal
    bundle = opened(tmp_path, {"model": model.state_dict()}, arch)
    images = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        torch.testing.assert_close(bundle.classifier.eval()(images)["x"], model(images), rtol=1e-3, atol=1e-4)
    assert f"weights of torchvision, converted to timm's {arch}: the outputs of both agree" in bundle.notes


def test_other_layouts_are_named_with_the_layer_to_wrap(tmp_path: Path) -> None:
    model = TORCHVISION.mobilenet_v3_small(num_classes=3)
    with pytest.raises(CheckpointError, match=r"has the names of torchvision.*taskgraft\.wrap\(net, 'classifier\.3'"):
        opened(tmp_path, model.state_dict(), "mobilenetv2_100")
    config = {"architectures": ["BeitForImageClassification"], "model_type": "beit"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"but BeitForImageClassification of Hugging Face transformers; wrap it"):
        open_parent(tmp_path)


@pytest.mark.slow
def test_folder_of_a_timm_model_that_transformers_saved(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.TimmWrapperConfig(architecture=ARCH, num_labels=3, id2label=dict(enumerate(NAMES)))
    model = transformers.TimmWrapperForImageClassification(config)
    model.save_pretrained(tmp_path)
    bundle = open_parent(tmp_path)
    assert_same(bundle, model.timm_model)
    assert bundle.classifier.tasks[0].classes == NAMES


@pytest.mark.slow
def test_what_is_said_of_transformers_works(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=32, num_labels=3
    )
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"names of Hugging Face transformers.*taskgraft\.wrap\(net, 'model\.classif"
    ):
        open_parent(tmp_path / "model.safetensors", arch="test_vit", unnamed=True)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = transformers.AutoModelForImageClassification.from_pretrained(str(tmp_path))

        def forward(self, images: Tensor) -> Tensor:
            return self.model(images).logits

    net = Net().eval()
    expected = logits(net)
    assert torch.equal(logits(taskgraft.wrap(net, "model.classifier", [taskgraft.Task("parent", NAMES)])), expected)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("class_to_idx", {"dog": 1, "cat": 0, "eel": 2}),
        ("classes", list(NAMES)),
        ("names", {0: "cat", 2: "eel", 1: "dog"}),
        ("config", {"id2label": {"0": "cat", "1": "dog", "2": "eel"}}),
    ],
)
def test_class_names_of_the_file_are_read(tmp_path: Path, key: str, value: Any) -> None:
    bundle = opened(tmp_path, {"state_dict": state(), key: value, "labels": ["a", "b"]}, labels=None)
    assert bundle.classifier.tasks[0].classes == NAMES
    entry = f"config.{next(iter(value))}" if key == "config" else key
    assert f"class names from its entry '{entry}'" in bundle.notes


def test_other_class_names_than_those_of_labels_are_said(tmp_path: Path) -> None:
    bundle = opened(tmp_path, {"state_dict": state(), "classes": ["x", "y", "z"]})
    assert bundle.classifier.tasks[0].classes == NAMES
    assert "its entry 'classes' has other class names, such as 'x': those of --labels count" in bundle.notes


def test_class_names_that_do_not_fit_are_not_taken(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no class names.*'classes' has 2 names, but the classifier has 3"):
        opened(tmp_path, {"state_dict": state(), "classes": ["a", "b"]}, labels=None)


def test_folder_of_shards(tmp_path: Path) -> None:
    files = {name: f"model-0000{1 + at % 2}-of-00002.safetensors" for at, name in enumerate(state())}
    for file in set(files.values()):
        save_file({name: value for name, value in state().items() if files[name] == file}, tmp_path / file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    (tmp_path / "config.json").write_text(json.dumps({"architecture": ARCH, "label_names": list(NAMES)}))
    bundle = open_parent(tmp_path)
    assert_same(bundle, net())
    save_file(state(seed=9), tmp_path / files["fc.bias"])
    assert open_parent(tmp_path / "model.safetensors.index.json", arch=ARCH, unnamed=True).digest != bundle.digest
