"""A bundle that was written is read again bit for bit, and plain timm loads it; a damaged one is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.data import resolve_model_data_config

from taskgraft import pytree
from taskgraft.bundle import Bundle, open_parent, read, write
from taskgraft.data import Preprocessing
from taskgraft.errors import TaskgraftError
from taskgraft.models.classifier import grow
from toys import NEW, OLD, parent, same

WANTED = Preprocessing(32, "center", 0.9, "bilinear", (0.48145466, 0.5, 0.5), (0.26862954, 0.5, 0.5))
MEMORY = {"ewc": {"fisher": {"heads.0.weight": torch.rand(3, 4), "n": torch.tensor(3)}}}
ARCHS = {"test_resnet": {}, "test_efficientnet": {}, "test_vit": {"img_size": 32}}


def bundle(arch: str = "test_resnet") -> Bundle:
    options = ARCHS[arch]
    classifier = grow(parent(arch, **options), NEW, 3)
    head = {"test_resnet": "fc", "test_efficientnet": "classifier", "test_vit": "head"}[arch]
    cards = {"shape": {"task": "shape", "accuracy": 0.5}}
    lineage = ({"parent": {"source": "here"}, "method": "distill", "task": "paint", "accuracy": {"shape": 0.5}},)
    return Bundle(classifier, WANTED, MEMORY, "here", "0", arch, head, (), lineage, cards, options)


def written(folder: Path, arch: str = "test_resnet") -> Path:
    folder.mkdir(exist_ok=True)
    write(folder, bundle(arch), method="distill", parent={"source": "here", "digest": "0"})
    return folder


def images() -> torch.Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("arch", ARCHS)
@torch.no_grad()
def test_a_bundle_comes_back_bit_for_bit(tmp_path: Path, arch: str) -> None:
    before, after = bundle(arch), read(written(tmp_path, arch))
    assert same(pytree.state(after.classifier), pytree.state(before.classifier))
    assert same(after.classifier.eval()(images()), before.classifier.eval()(images()))
    assert after.classifier.tasks == (OLD, NEW)
    assert after.preprocessing == WANTED
    assert same(dict(pytree.flatten(after.memory)), dict(pytree.flatten(MEMORY)))
    assert (after.cards, after.lineage, after.options) == (before.cards, before.lineage, before.options)
    assert (after.arch, after.head, after.home) == (before.arch, before.head, tmp_path)
    assert same(pytree.state(open_parent(str(tmp_path)).classifier), pytree.state(after.classifier))


def test_joint_softmax_is_remembered(tmp_path: Path) -> None:
    joint = bundle()
    joint.classifier.softmax = "joint"
    write(tmp_path, joint, method="finetune", parent={})
    assert read(tmp_path).classifier.softmax == "joint"


@pytest.mark.parametrize("arch", ARCHS)
@torch.no_grad()
def test_plain_timm_loads_it(tmp_path: Path, arch: str) -> None:
    folder = written(tmp_path, arch)
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    mine = bundle(arch).classifier.eval()(images())
    torch.testing.assert_close(theirs(images()), torch.cat([mine["shape"], mine["paint"]], 1), rtol=0, atol=1e-5)
    config = resolve_model_data_config(theirs)
    assert (config["input_size"], config["mean"]) == ([3, 32, 32], list(WANTED.mean))
    assert (config["crop_pct"], config["interpolation"]) == (0.9, "bilinear")
    told: Any = theirs.pretrained_cfg
    assert told["label_names"] == [*OLD.classes, *NEW.classes]


def test_writing_again_replaces_the_bundle(tmp_path: Path) -> None:
    written(tmp_path, "test_resnet")
    written(tmp_path, "test_efficientnet")
    assert read(tmp_path).arch == "test_efficientnet"
    assert not [path for path in tmp_path.rglob(".*") if path.is_file()]


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    config = json.loads((folder / "config.json").read_text())
    edit(config)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c["taskgraft"].update(format=2), "is a bundle of format 2; this taskgraft reads up to 1: upgrade"),
        (lambda c: c["taskgraft"]["tasks"][1].update(range=[2, 6]), "task 'paint' does not fit its rows"),
        (lambda c: c["taskgraft"]["tasks"][1].update(range=[3, 8]), "task 'paint' does not fit its rows"),
        (lambda c: c["taskgraft"]["tasks"][0].update(classes=["a", "a", "b"]), "task 'shape' does not fit its rows"),
        (lambda c: c["taskgraft"]["tasks"].pop(), "the tasks cover 3 of 7 rows"),
        (lambda c: c["taskgraft"]["tasks"][1].update(name="shape"), "the tasks cover 7 of 7 rows"),
        (lambda c: c["taskgraft"]["tasks"][1].update(name="../../out"), "is damaged"),
        (lambda c: c["taskgraft"].update(tasks=[]), "is damaged"),
        (lambda c: c["taskgraft"].update(softmax="none"), "is damaged"),
        (lambda c: c["taskgraft"].pop("head"), "is damaged"),
        (lambda c: c["taskgraft"].update(format="x"), "is damaged"),
        (lambda c: c.update(architecture="resnet1799"), "timm does not know the architecture 'resnet1799'"),
        (lambda c: c.update(architecture="test_vit"), "does not fit its config.json"),
        (lambda c: c["taskgraft"].update(head="layer1"), "is no linear layer"),
    ],
)
def test_a_configuration_that_contradicts_itself_is_refused(
    tmp_path: Path, edit: Callable[[dict[str, Any]], object], message: str
) -> None:
    with pytest.raises(TaskgraftError, match=message):
        read(change(written(tmp_path), edit))


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "memory.safetensors", "cards/shape.json"])
@pytest.mark.parametrize("keep", [0, 20])
def test_a_truncated_file_is_refused_by_name(tmp_path: Path, file: str, keep: int) -> None:
    path = written(tmp_path) / file
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(TaskgraftError, match=file):
        read(tmp_path)


def test_a_bundle_without_memory_or_weights(tmp_path: Path) -> None:
    (written(tmp_path) / "memory.safetensors").unlink()
    assert read(tmp_path).memory == {}
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(TaskgraftError, match=r"model\.safetensors does not exist"):
        read(tmp_path)
