"""A bundle is read back bit for bit, plain timm loads it, and a damaged or strange one is refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.data import resolve_model_data_config

from fuzz.bundles import CARD
from taskgraft import pytree
from taskgraft.bundle import Bundle, open_parent, read_bundle, write_bundle
from taskgraft.data import Preprocessing
from taskgraft.errors import CheckpointError, TaskgraftError
from taskgraft.models.classifier import grow
from taskgraft.results.predictions import load_predictions
from taskgraft.results.record import Record, load_record
from taskgraft.serving import model
from toys import NEW, OLD, equal, parent

PREPROCESSING = Preprocessing(32, "center", 0.9, "bilinear", (0.48145466, 0.5, 0.5), (0.26862954, 0.5, 0.5), 12)
MEMORY = {"ewc": {"fisher": {"heads.0.weight": torch.rand(3, 4), "n": torch.tensor(3)}}}
ARCHS = {"test_resnet": {}, "test_efficientnet": {}, "test_vit": {"img_size": 32}}
HEADS = {"test_resnet": "fc", "test_efficientnet": "classifier", "test_vit": "head"}
LINEAGE = ({"parent": {"source": "here"}, "method": "distill", "task": "paint", "accuracy": {"shape": 0.5}},)


def make_bundle(arch: str = "test_resnet") -> Bundle:
    classifier = grow(parent(arch, **ARCHS[arch]), NEW, 3)
    return Bundle(classifier, PREPROCESSING, MEMORY, "here", "0", arch, HEADS[arch], lineage=LINEAGE,
                  cards={"shape": CARD}, model_args=ARCHS[arch])  # fmt: skip


def write(folder: Path, arch: str = "test_resnet") -> Path:
    folder.mkdir(exist_ok=True)
    write_bundle(folder, make_bundle(arch), method="distill", parent={"source": "here", "digest": "0"})
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "bundle")


def images() -> torch.Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("arch", ARCHS)
@torch.no_grad()
def test_roundtrip_is_exact(tmp_path: Path, arch: str) -> None:
    before, after = make_bundle(arch), read_bundle(write(tmp_path, arch))
    assert equal(pytree.state(after.classifier), pytree.state(before.classifier))
    assert equal(after.classifier.eval()(images()), before.classifier.eval()(images()))
    assert after.classifier.tasks == (OLD, NEW)
    assert after.preprocessing == PREPROCESSING
    assert equal(dict(pytree.flatten(after.memory)), dict(pytree.flatten(MEMORY)))
    assert (after.cards, after.lineage, after.model_args) == (before.cards, before.lineage, before.model_args)
    assert (after.arch, after.head, after.folder) == (before.arch, before.head, tmp_path)
    assert equal(pytree.state(open_parent(str(tmp_path)).classifier), pytree.state(after.classifier))


def test_joint_softmax_is_stored(tmp_path: Path) -> None:
    joint = make_bundle()
    joint.classifier.softmax = "joint"
    write_bundle(tmp_path, joint, method="finetune", parent={})
    assert read_bundle(tmp_path).classifier.softmax == "joint"


@pytest.mark.parametrize("arch", ARCHS)
@torch.no_grad()
def test_plain_timm_loads_a_bundle(tmp_path: Path, arch: str) -> None:
    net = timm.create_model(f"local-dir:{write(tmp_path, arch)}", pretrained=True).eval()
    ours = make_bundle(arch).classifier.eval()(images())
    torch.testing.assert_close(net(images()), torch.cat([ours["shape"], ours["paint"]], 1), rtol=0, atol=1e-5)
    config = resolve_model_data_config(net)
    assert (config["input_size"], config["mean"]) == ([3, 32, 32], list(PREPROCESSING.mean))
    assert (config["crop_pct"], config["interpolation"]) == (0.9, "bilinear")
    cfg: Any = net.pretrained_cfg
    assert cfg["label_names"] == [*OLD.classes, *NEW.classes]


def test_writing_replaces_an_older_bundle(tmp_path: Path) -> None:
    write(tmp_path, "test_resnet")
    write(tmp_path, "test_efficientnet")
    assert read_bundle(tmp_path).arch == "test_efficientnet"
    assert not [path for path in tmp_path.rglob(".*") if path.is_file()]


def test_memory_is_optional_and_weights_are_not(folder: Path) -> None:
    (folder / "memory.safetensors").unlink()
    assert read_bundle(folder).memory == {}
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors does not exist"):
        read_bundle(folder)


def edit_json(file: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c["taskgraft"].update(format=2), "has bundle format 2, but this taskgraft reads up to 1; upgrade"),
        (lambda c: c["taskgraft"]["tasks"][1].update(range=[2, 6]), "task 'paint' does not match its rows"),
        (lambda c: c["taskgraft"]["tasks"][1].update(range=[3, 8]), "task 'paint' does not match its rows"),
        (lambda c: c["taskgraft"]["tasks"][0].update(classes=["a", "a", "b"]), "task 'shape' does not match its rows"),
        (lambda c: c["taskgraft"]["tasks"].pop(), "the tasks cover 3 of 7 rows"),
        (lambda c: c["taskgraft"]["tasks"][1].update(name="shape"), "the tasks cover 7 of 7 rows"),
        (lambda c: c["taskgraft"]["tasks"][1].update(name="../../out"), "is damaged"),
        (lambda c: c["taskgraft"].update(tasks=[]), "is damaged"),
        (lambda c: c["taskgraft"].update(softmax="none"), "is damaged"),
        (lambda c: c["taskgraft"].pop("head"), "is damaged"),
        (lambda c: c["taskgraft"].update(format="x"), "is damaged"),
        (lambda c: c["taskgraft"].update(format=float("inf")), "is damaged: taskgraft.format"),
        (lambda c: c["taskgraft"].update(lineage=[{"parent": "x"}]), "is damaged: taskgraft.lineage.0.parent"),
        (lambda c: c["taskgraft"].update(lineage=[{"accuracy": {"a": "x"}}]), "taskgraft.lineage.0.accuracy"),
        (lambda c: c["pretrained_cfg"].update(mean=[0, 10**400, 0]), "has mean"),
        (lambda c: c["pretrained_cfg"].update(crop_pct=1e-300), "has crop_pct"),
        (lambda c: c.update(model_args={"stem_width": 0}), "cannot build test_resnet with its model_args"),
        (lambda c: c.update(architecture="resnet1799"), "timm does not know the architecture 'resnet1799'"),
        (lambda c: c.update(architecture="test_vit"), "does not match its config.json"),
        (lambda c: c["taskgraft"].update(head="layer1"), "is not a linear layer"),
    ],
)
def test_inconsistent_config_is_refused(folder: Path, edit: Callable[[dict[str, Any]], object], message: str) -> None:
    edit_json(folder / "config.json", edit)
    with pytest.raises(TaskgraftError, match=message) as caught:
        read_bundle(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("temperature", -1, "temperature: Input should be greater than 0"),
        ("temperature", float("nan"), "temperature: Input should be a finite number"),
        ("temperature", "hot", "temperature: Input should be a valid number"),
        ("classes", 5, "classes: Input should be a valid list"),
        ("train_counts", [1], "train_counts"),
        ("confusion", [[1], [1, 2]], "its rows differ in length"),
        ("mean_posterior", [["x"]], "mean_posterior.0.0"),
    ],
)
def test_strange_task_card_is_refused(folder: Path, key: str, value: Any, message: str) -> None:
    edit_json(folder / "cards/shape.json", lambda card: card.update({key: value}))
    with pytest.raises(CheckpointError, match=rf"cards/shape\.json is damaged: .*{message}") as caught:
        read_bundle(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "memory.safetensors", "cards/shape.json"])
@pytest.mark.parametrize("keep", [0, 20])
def test_truncated_file_is_named(folder: Path, file: str, keep: int) -> None:
    (folder / file).write_bytes((folder / file).read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=file):
        read_bundle(folder)


@pytest.mark.parametrize("names", [("a", "a/b"), ("a/b", "a"), ("a/b", "a/b/c")])
def test_memory_with_nested_names_is_refused(folder: Path, names: tuple[str, str]) -> None:
    tensors = {name: torch.ones(1) for name in names}
    with pytest.raises(ValueError, match="another tensor"):
        pytree.unflatten(tensors)
    save_file(tensors, folder / "memory.safetensors")
    with pytest.raises(CheckpointError, match=r"memory.safetensors is damaged: 'a"):
        read_bundle(folder)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64])
def test_memory_of_another_dtype_is_refused(folder: Path, dtype: torch.dtype) -> None:
    save_file({"a": torch.zeros(4).to(dtype)}, folder / "memory.safetensors")
    with pytest.raises(CheckpointError, match="save the weights as float32"):
        read_bundle(folder)


def test_damaged_record_is_named(folder: Path, tmp_path: Path) -> None:
    (folder / "record.json").write_text('{"format": 1, "tasks": 7}')
    with pytest.raises(TaskgraftError, match=r"record.json is damaged: \d+ validation errors for Record"):
        model.describe_model(read_bundle(folder), "m", "torch")
    with pytest.raises(TaskgraftError, match=r"nowhere\.json is damaged"):
        load_record(Record, tmp_path / "nowhere.json")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY\x01\0", b"text"])
def test_damaged_predictions_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "predictions.npz").write_bytes(content)
    with pytest.raises(TaskgraftError, match=r"predictions.npz is damaged: \w+"):
        load_predictions(tmp_path / "predictions.npz")
