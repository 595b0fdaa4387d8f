"""Opening a parent, whatever it is; nothing is loaded unless every tensor matches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from taskgraft.bundle import open_parent
from taskgraft.errors import CheckpointError, TaskgraftError

NAMES = ("cat", "dog", "eel")


def net(arch: str = "test_resnet", classes: int = 3) -> nn.Module:
    torch.manual_seed(2)
    return timm.create_model(arch, num_classes=classes).eval()


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    (tmp_path / "labels.txt").write_text("\ufeffcat\n dog \n\neel\n", encoding="utf-8")
    return tmp_path / "labels.txt"


def save(path: Path, value: Any) -> str:
    torch.save(value, path)
    return str(path)


def logits(model: nn.Module, size: int = 32) -> Tensor:
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        outputs = model.eval()(images)
    return torch.cat(list(outputs.values()), 1) if isinstance(outputs, dict) else outputs


@pytest.mark.parametrize(("arch", "size"), [("test_resnet", 32), ("test_efficientnet", 32), ("test_vit", 160)])
def test_file_of_weights_gives_the_same_logits(tmp_path: Path, labels: Path, arch: str, size: int) -> None:
    path = save(tmp_path / "x.pt", {"model": {f"module.{k}": v for k, v in net(arch).state_dict().items()}})
    bundle = open_parent(path, arch=arch, labels=labels, task="pet", preprocessing=f"{size} squash")
    torch.testing.assert_close(logits(bundle.classifier, size), logits(net(arch), size), rtol=1e-5, atol=1e-6)
    assert bundle.classifier.tasks == (("pet", NAMES),)
    assert (bundle.arch, bundle.preprocessing.size, bundle.preprocessing.crop) == (arch, size, "squash")
    assert any("prefix 'module.'" in line for line in bundle.notes)
    assert bundle.digest
    assert bundle.memory == {}


def test_architecture_is_read_from_the_file(tmp_path: Path, labels: Path) -> None:
    path = save(tmp_path / "x.pt", {"arch": "test_resnet", "state_dict": net().state_dict()})
    bundle = open_parent(path, labels=labels)
    assert bundle.arch == "test_resnet"
    assert any("test_resnet from its entry 'arch'" in line for line in bundle.notes)


def test_missing_batch_counters_are_allowed(tmp_path: Path, labels: Path) -> None:
    state = {k: v for k, v in net().state_dict().items() if not k.endswith("num_batches_tracked")}
    bundle = open_parent(save(tmp_path / "x.pt", state), arch="test_resnet", labels=labels)
    assert torch.equal(logits(bundle.classifier), logits(net()))


def test_missing_flags_are_named(tmp_path: Path, labels: Path) -> None:
    path = save(tmp_path / "x.pt", net().state_dict())
    with pytest.raises(TaskgraftError, match=r"does not name its architecture; give --arch"):
        open_parent(path, labels=labels)
    with pytest.raises(TaskgraftError, match="has no class names; give --labels"):
        open_parent(path, arch="test_resnet")
    with pytest.raises(TaskgraftError, match=r"cannot read --labels .*gone\.txt"):
        open_parent(path, arch="test_resnet", labels=tmp_path / "gone.txt")
    with pytest.raises(TaskgraftError, match="'test_resnt' is not a timm model; did you mean 'test_resnet'"):
        open_parent(path, arch="test_resnt", labels=labels)


def test_labels_must_match_and_be_unique(tmp_path: Path) -> None:
    path, labels = save(tmp_path / "x.pt", net().state_dict()), tmp_path / "l.txt"
    labels.write_text("cat\ndog\n")
    with pytest.raises(TaskgraftError, match=r"has 3 classes, but there are 2 class names"):
        open_parent(path, arch="test_resnet", labels=labels)
    labels.write_text("cat\ndog\ncat\n")
    with pytest.raises(TaskgraftError, match="lists 'cat' twice"):
        open_parent(path, arch="test_resnet", labels=labels)


def test_wrong_architecture_names_tensors(tmp_path: Path, labels: Path) -> None:
    path = save(tmp_path / "x.pt", net().state_dict())
    with pytest.raises(
        TaskgraftError, match=r"is not a test_vit: \d+ tensors differ, first cls_token \(missing in the file"
    ):
        open_parent(path, arch="test_vit", labels=labels)
    state = net().state_dict()
    state["extra.weight"] = torch.ones(2)
    with pytest.raises(
        TaskgraftError, match=r"1 tensors differ, first extra\.weight \(2 in the file, missing in test_resnet"
    ):
        open_parent(save(tmp_path / "x.pt", state), arch="test_resnet", labels=labels)
    state = net().state_dict()
    state["conv1.0.weight"] = state["conv1.0.weight"][:-1]
    with pytest.raises(TaskgraftError, match=r"1 tensors differ, first conv1\.0\.weight \(\d+x3x3x3 in the file, "):
        open_parent(save(tmp_path / "x.pt", state), arch="test_resnet", labels=labels)


def timm_folder(folder: Path, **changes: Any) -> Path:
    folder.mkdir()
    model = net()
    settings = {
        "architecture": "test_resnet",
        "num_classes": 3,
        "label_names": list(NAMES),
        "pretrained_cfg": {"input_size": [3, 64, 64], "mean": [0.1, 0.2, 0.3], "crop_pct": 0.9},
        **changes,
    }
    (folder / "config.json").write_text(json.dumps(settings))
    save_file(model.state_dict(), folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("prefix", ["", "local-dir:"])
def test_timm_folder(tmp_path: Path, prefix: str) -> None:
    bundle = open_parent(prefix + str(timm_folder(tmp_path / "m")), task="pet")
    assert torch.equal(logits(bundle.classifier), logits(net()))
    assert bundle.classifier.tasks == (("pet", NAMES),)
    assert bundle.preprocessing[:3] == (64, "center", 0.9)
    assert bundle.preprocessing.mean == (0.1, 0.2, 0.3)


def test_folder_saved_by_timm(tmp_path: Path) -> None:
    """timm's own files tell the number of classes among the network's arguments; a child does not inherit it."""
    timm.models.save_for_hf(net(), str(tmp_path), model_config={"label_names": list(NAMES)}, safe_serialization=True)
    assert json.loads((tmp_path / "config.json").read_text())["model_args"]["num_classes"] == len(NAMES)
    bundle = open_parent(str(tmp_path))
    assert torch.equal(logits(bundle.classifier), logits(net()))
    assert "num_classes" not in bundle.model_args


def test_timm_folder_without_names_needs_labels(tmp_path: Path, labels: Path) -> None:
    folder = timm_folder(tmp_path / "m", label_names=None)
    assert open_parent(str(folder), labels=labels).classifier.tasks[0].classes == NAMES
    with pytest.raises(TaskgraftError, match="has no class names"):
        open_parent(str(folder))


def test_folder_without_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskgraftError, match=r"config\.json is missing or names no timm architecture"):
        open_parent(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(TaskgraftError, match=r"config\.json is damaged"):
        open_parent(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(TaskgraftError, match="names no timm architecture"):
        open_parent(str(tmp_path))
    (tmp_path / "config.json").write_text('{"architecture": "test_resnet"}')
    with pytest.raises(TaskgraftError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        open_parent(str(tmp_path))


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(
        CheckpointError, match=r"'test_resne' is not a file, folder or timm model; did you mean .*test_res"
    ):
        open_parent("test_resne")
    with pytest.raises(TaskgraftError, match=r"gone\.pth does not exist"):
        open_parent("gone.pth", arch="test_resnet")


def test_opening_changes_no_file(tmp_path: Path, labels: Path) -> None:
    folder = timm_folder(tmp_path / "m")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    open_parent(str(folder))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("file", "task"),
    [
        ("cars.pth", "cars"),
        ("cars_v2.1-best.pth.tar", "cars_v2-1-best"),
        ("models of cars (old).safetensors", "models-of-cars-old"),
        ("_last.ckpt", "last"),
        ("cars_test_resnet_best.pth", "cars_best"),
        ("test_resnet.pth", "test_resnet"),
        ("車.pth", "parent"),
    ],
)
def test_task_of_a_file_has_its_name(file: str, task: str, tmp_path: Path, labels: Path) -> None:
    state = net().state_dict()
    if file.endswith(".safetensors"):
        save_file(state, tmp_path / file)
    else:
        torch.save(state, tmp_path / file)
    found = open_parent(tmp_path / file, arch="test_resnet", labels=labels)
    assert found.tasks[0].name == task
    assert f"task {task!r}, named after {tmp_path / file}" in found.notes
    given = open_parent(tmp_path / file, arch="test_resnet", labels=labels, task="models")
    assert given.tasks[0].name == "models"
    assert not [note for note in given.notes if "named after" in note]
