"""An extension of a model in memory by images in memory is the extension of the same model and images on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn

import taskgraft
from taskgraft import Task, TrainingConfig, pytree
from taskgraft.errors import TaskgraftError
from toys import NEW, OLD, equal, make_images, write_folder

pytestmark = pytest.mark.usefixtures("no_charts")
CONFIG = TrainingConfig(steps=4, batch_size=8, head_steps=4, eval_every=2, precision="fp32")


def test_bundle_and_dataset_train_the_child_of_their_folders(
    alice: Path, new_folder: Path, old_folder: Path, tmp_path: Path
) -> None:
    arguments = {"task": "paint", "method": "distill", "config": CONFIG}
    on_disk = taskgraft.extend(alice, new_folder, tmp_path / "one", old_val=old_folder, **arguments)
    bundle = taskgraft.open_parent(alice)
    before = pytree.state(bundle.classifier)
    folders = {name: torchvision.datasets.ImageFolder(new_folder / name) for name in ("train", "val")}
    old = {"val": torchvision.datasets.ImageFolder(old_folder / "val")}
    run = taskgraft.extend(bundle, folders, out=tmp_path / "two", old_val=old, **arguments)
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two")]
    assert files[0] == files[1]
    assert equal(pytree.state(bundle.classifier), before)
    assert run.record.tasks == on_disk.record.tasks
    assert run.record.parent["digest"] == on_disk.record.parent["digest"]
    assert (run.out / "report.html").is_file()
    assert run.record.reproduce_command.startswith("taskgraft.extend(<Bundle(test_resnet, tasks: shape (3); from ")
    assert "task='paint', method='distill'" in run.record.reproduce_command
    said: list[str] = []
    again = taskgraft.extend(bundle, folders, out=tmp_path / "two", old_val=old, **arguments,
                             callbacks=taskgraft.Callbacks(info=said.append))  # fmt: skip
    assert again.record == run.record
    assert said[-1].endswith("already holds this run, finished; nothing to do")


def test_changed_weights_are_another_parent(alice: Path) -> None:
    bundle = taskgraft.open_parent(alice)
    same = taskgraft.open_parent(bundle)
    assert (same.digest, same.folder) == (bundle.digest, alice)
    with torch.no_grad():
        bundle.classifier.linears()[0].bias.add_(1)
    changed = taskgraft.open_parent(bundle)
    assert changed.digest != bundle.digest
    assert changed.folder is None  # whose files are not this model


def test_wrapped_timm_network_becomes_a_bundle(new_folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = timm.create_model("test_resnet", num_classes=3)
    images = make_images(20, NEW, 3)
    pair = (images.pixels.numpy(), [NEW.classes[label] for label in images.labels["paint"]])
    run = taskgraft.extend(
        taskgraft.wrap(net, "fc", [OLD]), pair, tmp_path / "out", task="paint", method="frozen", config=CONFIG,
        preprocessing="32 squash bilinear half",
    )  # fmt: skip
    assert [task.name for task in run.tasks] == ["shape", "paint"]
    child = timm.create_model(f"local-dir:{run.out}", pretrained=True)
    assert torch.equal(child.state_dict()["fc.weight"][:3], net.state_dict()["fc.weight"])
    assert run.predict(images.pixels[0].numpy()).labels["paint"][0] in NEW.classes


def test_networks_that_no_name_rebuilds_are_refused(new_folder: Path, tmp_path: Path) -> None:
    changed = timm.create_model("test_resnet", num_classes=3)
    changed.layer1 = nn.Identity()
    vectors = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    for net, head, message in (
        (changed, "fc", "is not what timm builds as test_resnet"),
        (vectors, "1", "is a Sequential, not a model of timm, .* use taskgraft.learn"),
    ):
        with pytest.raises(TaskgraftError, match=message):
            taskgraft.extend(taskgraft.wrap(net, head, [OLD]), new_folder, tmp_path / "out", task="paint")
    with pytest.raises(TaskgraftError, match="parent is a Linear; give a path or a name, a Bundle, or make a Classif"):
        taskgraft.extend(nn.Linear(2, 2), new_folder, tmp_path / "out", task="paint")  # type: ignore
    assert not (tmp_path / "out").exists()


def test_what_names_its_images_in_commands_wants_paths(alice: Path, new_folder: Path, tmp_path: Path) -> None:
    request = taskgraft.Request(taskgraft.open_parent(alice), new_folder, "paint")
    with pytest.raises(TaskgraftError, match="compare names its parent and images in commands"):
        taskgraft.compare(request, [taskgraft.Variant("a", "distill", CONFIG)], tmp_path / "out")


def test_learn_begins_with_the_child_of_a_run(plain: Path) -> None:
    images = np.zeros((6, 32, 32, 3), np.uint8), ["a", "b"] * 3
    learned = taskgraft.learn(taskgraft.load(plain), images, task="form", method="frozen", config=CONFIG)
    assert learned.bundle
    assert [task.name for task in learned.bundle.tasks] == ["shape", "paint", "form"]


def test_learn_adds_a_task_to_a_bundle(alice: Path, tmp_path: Path) -> None:
    bundle = taskgraft.open_parent(alice)
    data = torchvision.datasets.ImageFolder(write_folder(tmp_path / "paint", NEW, 16, 3))
    learned = taskgraft.learn(bundle, data, task="paint", method="ewc(images=8)", config=replace(CONFIG, steps=2))
    assert learned.bundle
    assert learned.bundle.tasks == (OLD, Task("paint", tuple(sorted(NEW.classes))))
    assert learned.bundle.digest != bundle.digest
    assert learned.bundle.memory.keys() >= {"ewc"}
    assert [task.name for task in bundle.tasks] == ["shape"]
    again = taskgraft.learn(learned.bundle, data, method="frozen", config=replace(CONFIG, steps=2))
    assert again.bundle
    assert again.bundle.tasks == learned.bundle.tasks
    with pytest.raises(TaskgraftError, match="'shape' is not the newest of the bundle"):
        taskgraft.learn(learned.bundle, data, task="shape")
