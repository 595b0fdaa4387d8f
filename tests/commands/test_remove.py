"""Remove: a task or classes leave a model of any kind, and what is left answers with the same bits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

import taskgraft
from forks import run_cli
from taskgraft import TrainingConfig
from taskgraft.bundle import Bundle, open_parent, write_bundle
from taskgraft.data.transforms import NORMS, Preprocessing
from taskgraft.errors import InputError
from taskgraft.models.classifier import Classifier
from taskgraft.models.inference import compute_logits, predict
from taskgraft.models.restructuring import prune_memory, restructure
from taskgraft.pipeline.measuring import build_task_card
from taskgraft.results.predictions import save_predictions
from taskgraft.types import Task
from toys import NEW, OLD, make_images, parent, start_run

pytestmark = pytest.mark.usefixtures("no_charts")

KINDS = {"plain": "finetune", "branch": "branch", "ladder": "ladder", "taps": "taps"}
SHAPE, PAINT = list(range(len(OLD.classes))), list(range(len(NEW.classes)))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A bundle of every kind with the tasks shape and paint: their networks, with random heads, are not trained."""
    root = tmp_path_factory.mktemp("models")
    for kind, method in KINDS.items():
        write_model(root / kind, start_run(method)[0].classifier)
    return {kind: root / kind for kind in KINDS}


def write_model(folder: Path, classifier: Classifier, **fields: Any) -> Path:
    """A bundle with a card for each task, and the stored predictions that the card of paint was made from."""
    for head in classifier.linears():
        torch.nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(5))
    predictions = predict(classifier, make_images(24, NEW, 4))
    card = build_task_card(predictions, "paint", dict.fromkeys(NEW.classes, 10), "tests") if predictions.labels else {}
    bundle = Bundle(
        classifier, Preprocessing(32, "squash", 1.0, "bilinear", *NORMS["half"]), {}, "toy", "0", "test_resnet", "fc",
        cards={"shape": {"task": "shape", "classes": list(OLD.classes)}, "paint": card},
    )  # fmt: skip
    folder.mkdir(parents=True)
    write_bundle(folder, replace(bundle, **fields), method="finetune", parent={})
    save_predictions(folder / "predictions.npz", {"new": predictions})
    return folder


def same_logits(before: Bundle, after: Bundle, columns: dict[str, list[int]]) -> None:
    """The logits of what is left have the bits that they had, also those of a single image."""
    images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    for batch in (images, images[:1]):
        old, new = compute_logits(before.classifier, batch), compute_logits(after.classifier, batch)
        assert new.keys() == columns.keys()
        for task, rows in columns.items():
            assert torch.equal(new[task], old[task][:, rows]), task


def file_size(folder: Path) -> int:
    return (folder / "model.safetensors").stat().st_size


def size_of(folder: Path) -> int:
    return (folder / "model.safetensors").stat().st_size


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", ["shape", "paint"])
def test_the_other_task_keeps_its_bits(kind: str, task: str, models: dict[str, Path], tmp_path: Path) -> None:
    done = taskgraft.remove(models[kind], tmp_path / "less", task=task)
    other, rows = (NEW, PAINT) if task == "shape" else (OLD, SHAPE)
    before = open_parent(models[kind])
    same_logits(before, done.bundle, {other.name: rows})
    assert done.bundle.tasks == (other,)
    assert size_of(done.out) < size_of(models[kind])
    assert done.bundle.cards == {other.name: before.cards[other.name]}
    entry = json.loads((done.out / "config.json").read_text())["taskgraft"]["lineage"][-1]
    assert entry["removed"] == {"task": task}
    assert entry["parent"]["digest"] == before.digest
    is_plain = task == "paint" or kind in ("plain", "branch")
    assert is_plain != bool(len(done.bundle.classifier.extras))
    if is_plain:
        net = timm.create_model(f"local-dir:{done.out}", pretrained=True).eval()
        with torch.no_grad():
            assert net(torch.zeros(1, 3, 32, 32)).shape == (1, len(other.classes))
    else:  # no head reads the backbone's own features any more, and that of the next task does
        wide = taskgraft.grow(done.bundle.classifier, Task("form", ("a", "b")))
        assert wide.linears()[-1].in_features == before.classifier.width != wide.linears()[0].in_features
        assert compute_logits(wide, torch.zeros(1, 3, 32, 32))["form"].shape == (1, 2)


@pytest.mark.parametrize("kind", ["plain", "ladder"])
def test_remaining_classes_keep_their_bits(kind: str, models: dict[str, Path], tmp_path: Path) -> None:
    before = open_parent(models[kind])
    done = taskgraft.remove(models[kind], tmp_path / "less", task="paint", classes=["green"])
    same_logits(before, done.bundle, {"shape": SHAPE, "paint": [0, 2, 3]})
    assert done.bundle.tasks == (OLD, Task("paint", ("red", "blue", "grey")))
    assert size_of(done.out) < size_of(models[kind])
    twice = taskgraft.remove(done, tmp_path / "twice", task="paint", classes="red")
    same_logits(before, twice.bundle, {"shape": SHAPE, "paint": [2, 3]})
    assert [entry["removed"]["classes"] for entry in twice.bundle.lineage] == [["green"], ["red"]]


def test_the_card_is_made_of_the_stored_predictions(models: dict[str, Path], tmp_path: Path) -> None:
    done = taskgraft.remove(models["plain"], tmp_path / "less", task="paint", classes=["green"])
    card = done.bundle.cards["paint"]
    assert card["classes"] == ["red", "blue", "grey"]
    assert np.shape(card["confusion"]) == (3, 4)
    assert card["images"] == 18  # of 24, those of the classes that stay
    assert card["train_counts"] == {"red": 10, "blue": 10, "grey": 10}
    assert any("computed again" in note for note in done.notes)
    twice = taskgraft.remove(done, tmp_path / "twice", task="paint", classes="red")
    assert "paint" not in twice.bundle.cards
    assert any("renew it with calibrate" in note for note in twice.notes)


def test_a_model_without_some_classes_goes_on_learning(
    models: dict[str, Path], old_folder: Path, tmp_path: Path
) -> None:
    less = taskgraft.remove(models["plain"], tmp_path / "less", task="paint", classes=["green"]).bundle.classifier
    images = make_images(16, Task("form", OLD.classes), 1)
    config = TrainingConfig(steps=2, batch_size=8, head_steps=1, views=2)
    child, memory, _ = taskgraft.learn(
        taskgraft.grow(less, Task("form", OLD.classes)), images, method="distill + ewc(images=8)", config=config
    )
    assert [len(task.classes) for task in child.tasks] == [3, 3, 3]
    assert memory["ewc"]["importance"]["heads.1.weight"].shape[0] == 3
    assert memory["ewc"]["importance"]["heads.1.weight"].any()  # training multiplies the rows that are left


def test_columns_of_later_side_networks_move(models: dict[str, Path], tmp_path: Path) -> None:
    """Of two ladders the first goes: the second task's head reads other columns, and the same values."""
    config = TrainingConfig(steps=2, batch_size=8, head_steps=1, views=2)
    both = taskgraft.grow(open_parent(models["ladder"]).classifier, Task("form", ("a", "b", "c")))
    images = make_images(16, Task("form", ("a", "b", "c")), 1)
    model = write_model(tmp_path / "two", taskgraft.learn(both, images, method="ladder", config=config).classifier)
    done = taskgraft.remove(model, tmp_path / "less", task="paint")
    same_logits(open_parent(model), done.bundle, {"shape": SHAPE, "form": [0, 1, 2]})
    assert len(done.bundle.classifier.extras) == 1
    assert any("1 side network" in note for note in done.notes)


def test_memory_follows_what_is_left(models: dict[str, Path], tmp_path: Path) -> None:
    classifier = open_parent(models["plain"]).classifier
    images = {
        "pixels": torch.arange(4)[:, None, None, None].expand(4, 8, 8, 3).to(torch.uint8).contiguous(),
        "labels": {"shape": torch.tensor([0, 1, -1, -1]), "paint": torch.tensor([-1, -1, 1, 3])},
    }
    values = {name: value.detach().clone() for name, value in classifier.named_parameters()}
    memory = {"ewc": {"importance": values}, "replay": images}
    model = write_model(tmp_path / "model", classifier, memory=memory)
    values = open_parent(model).memory["ewc"]["importance"]
    fewer = taskgraft.remove(model, tmp_path / "fewer", task="paint", classes=["green"]).bundle.memory
    assert torch.equal(fewer["ewc"]["importance"]["heads.1.weight"], values["heads.1.weight"][[0, 2, 3]])
    assert fewer["replay"]["labels"]["paint"].tolist() == [-1, -1, 2]  # the green image is gone
    assert fewer["replay"]["pixels"][:, 0, 0, 0].tolist() == [0, 1, 3]
    done = taskgraft.remove(model, tmp_path / "less", task="shape")
    assert torch.equal(done.bundle.memory["ewc"]["importance"]["heads.0.weight"], values["heads.1.weight"])
    assert "heads.1.weight" not in done.bundle.memory["ewc"]["importance"]
    assert done.bundle.memory["replay"]["pixels"][:, 0, 0, 0].tolist() == [2, 3]
    assert any("ewc, replay" in note for note in done.notes)


def test_memory_of_a_branch_takes_the_names_of_the_backbone(models: dict[str, Path]) -> None:
    classifier = open_parent(models["branch"]).classifier
    restructured = restructure(classifier, {"shape": ()})
    memory = {name: value.detach() for name, value in classifier.named_parameters()}
    pruned = prune_memory(memory, classifier, restructured)
    left = dict(restructured.classifier.named_parameters())
    assert pruned.keys() == left.keys()
    assert all(torch.equal(pruned[name], value) for name, value in left.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "size"}, "has no such task; it has shape, paint"),
        ({"task": "paint", "classes": ["gren"]}, "has no such class; did you mean 'green'"),
        ({"task": "shape", "classes": ["round", "thin"]}, r"would keep one of its 3 classes \(square\)"),
        ({"task": "shape", "classes": OLD.classes}, "would keep none of its 3 classes.*leave --classes out"),
    ],
)
def test_too_little_or_nothing_known_is_refused(
    options: dict[str, Any], message: str, models: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        taskgraft.remove(models["plain"], tmp_path / "less", **options)
    assert not (tmp_path / "less").exists()


def test_the_only_task_and_a_full_folder_are_refused(models: dict[str, Path], tmp_path: Path) -> None:
    less = taskgraft.remove(models["plain"], tmp_path / "less", task="shape")
    with pytest.raises(InputError, match="only task"):
        taskgraft.remove(less, tmp_path / "none", task="paint")
    with pytest.raises(InputError, match="already exists"):
        taskgraft.remove(models["plain"], less.out, task="shape")


def test_a_weights_file_and_the_command_line(tmp_path: Path) -> None:
    state = parent().backbone.state_dict() | {"fc.weight": torch.randn(3, 96), "fc.bias": torch.randn(3)}
    torch.save(state, tmp_path / "shapes.pth")
    (tmp_path / "labels.txt").write_text("\n".join(OLD.classes))
    command = (
        "remove", "shapes.pth", "less", "--task", "shape", "--parent-task", "shape", "--classes", "thin",
        "--arch", "test_resnet", "--labels", "labels.txt", "--preprocessing", "32 squash bilinear half",
    )  # fmt: skip
    tried = run_cli(*command, "--dry-run", cwd=tmp_path, check=True)
    assert tried.stdout.splitlines() == [
        "would be removed: shape: thin", "left, with the same logits to the bit: shape (2)",
        "nothing was written to less",
    ]  # fmt: skip
    assert not (tmp_path / "less").exists()
    done = run_cli(*command, cwd=tmp_path, check=True)
    assert done.stdout.splitlines() == [
        "removed: shape: thin", "left, with the same logits to the bit: shape (2)", "model: less",
    ]  # fmt: skip
    assert open_parent(tmp_path / "less").tasks == (Task("shape", ("round", "square")),)
