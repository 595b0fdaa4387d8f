"""More classes for an old task, what the first task records, and what a grafted child is worth afterwards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import taskgraft
from taskgraft import metrics
from taskgraft.commands.train import train
from taskgraft.config import TrainingConfig
from taskgraft.data import open_images
from taskgraft.errors import TaskgraftError
from taskgraft.models.classifier import widen, wrap
from taskgraft.pipeline.measuring import compute_task_results
from taskgraft.report.run_summary import is_at_chance
from taskgraft.results.predictions import Predictions
from taskgraft.types import Task
from toys import NEW, OLD, write_folder

pytestmark = pytest.mark.usefixtures("no_charts")

RUN = TrainingConfig(steps=30, batch_size=8, head_steps=20, eval_every=10, save_every=10, precision="fp32")
MORE = OLD._replace(classes=("oval", "star"))


@pytest.fixture(scope="module")
def more_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("more")
    write_folder(root / "train", MORE, 24, 5)
    write_folder(root / "val", MORE, 12, 6)
    return root


@pytest.mark.parametrize("method", ["distill", "branch", "ewc(images=16)"])
def test_into_adds_classes_to_old_task(
    alice: Path, more_folder: Path, old_folder: Path, tmp_path: Path, method: str
) -> None:
    done = taskgraft.extend(
        alice,
        more_folder,
        tmp_path / "wide",
        task="shape",
        into=True,
        method=method,
        config=RUN,
        old_val=[old_folder],
    )
    assert [task.classes for task in done.bundle.classifier.tasks] == [(*OLD.classes, *MORE.classes)]
    old, new = done.record.tasks
    assert (old.name, old.new, new.name, new.new) == ("shape", False, "shape, added classes", True)
    assert old.child
    assert new.child
    assert done.record.score == pytest.approx((old.child.mean + new.child.mean) / 2)
    assert new.classes == MORE.classes
    card = done.bundle.cards["shape"]
    assert np.shape(card["confusion"]) == (5, 6)
    assert np.sum(card["confusion"]) == 36  # measured on old and new images
    again = taskgraft.load(tmp_path / "wide").bundle.classifier
    result = open_images(more_folder, "shape", done.bundle.preprocessing, seed=0, classes=again.tasks[0].classes)
    assert result.val
    logits = taskgraft.predict(again, result.val).logits["shape"]
    np.testing.assert_allclose(logits, done.predictions["new"].logits["shape"], atol=1e-5)


@pytest.mark.parametrize("method", ["", "branch", "distill"])
def test_one_added_class_without_old_images_takes_few_of_them(
    alice: Path, old_folder: Path, tmp_path: Path, method: str
) -> None:
    """One class has nothing to be told from: its weights come from its images' features, and nothing is trained."""
    one = Task("other", ("star",))  # its color is none of the old classes'
    write_folder(tmp_path / "more/train", one, 24, 5)
    write_folder(tmp_path / "more/val", one, 24, 6)
    lines: list[str] = []
    done = taskgraft.extend(
        alice, tmp_path / "more", tmp_path / "wide", task="shape", into=True, method=method, old_val=old_folder / "val",
        config=RUN, callbacks=taskgraft.Callbacks(info=lines.append),
    )  # fmt: skip
    old, new = done.record.tasks
    assert old.parent
    assert old.child
    assert new.child
    assert old.child.mean >= 0.5  # three classes of noise leave little room for a fourth; all of it was lost before
    assert new.child.mean >= 0.25
    assert done.record.config["steps"] == 1
    assert "--steps 30" in done.record.reproduce_command  # another method would need them
    assert any(line.startswith("no image of an old class") for line in lines)
    assert done.record.notes
    assert old.agreement is None  # no validation image shows an old class: nothing to agree on
    assert done.record.method == (method or "frozen")


def test_a_branch_learns_many_added_classes(alice: Path, old_folder: Path, tmp_path: Path) -> None:
    """From five on it is the default, and four in five of their training images are theirs."""
    many = Task("paints", (*NEW.classes, "star"))
    write_folder(tmp_path / "more/train", many, 60, 5)
    write_folder(tmp_path / "more/val", many, 12, 6)
    lines: list[str] = []
    done = taskgraft.extend(
        alice, tmp_path / "more", tmp_path / "wide", task="shape", into=True, old_val=old_folder / "val", config=RUN,
        callbacks=taskgraft.Callbacks(info=lines.append),
    )  # fmt: skip
    assert done.record.method == "branch"
    assert any("a bias assigns 80% of these to them" in line for line in lines)
    assert "--method branch" in done.record.reproduce_command
    train = open_images(
        tmp_path / "more", "shape", done.bundle.preprocessing, seed=0, classes=done.bundle.tasks[0].classes
    ).train
    assert train
    found = taskgraft.predict(done.bundle.classifier, train).logits["shape"].argmax(1)
    assert (found >= len(OLD.classes)).mean() == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize("added", [1, 2])
def test_added_classes_take_no_old_image_where_features_tell_them_apart(added: int) -> None:
    rng = np.random.default_rng(3)

    def draw(labels: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(4 * np.eye(8)[labels] + rng.normal(0, 0.3, (len(labels), 8))).float()

    layers = nn.Linear(8, 8), nn.Linear(8, 3)
    with torch.no_grad():
        for layer in layers:
            layer.weight.copy_(torch.eye(*layer.weight.shape))
            layer.bias.zero_()
    old = wrap(nn.Sequential(*layers), "1", [Task("kind", ("a", "b", "c"))])
    wide = widen(old, "kind", ("d", "e")[:added], 0)
    labels = 3 + np.arange(80) % added
    child = taskgraft.learn(
        wide, (draw(labels), torch.from_numpy(labels)), method="frozen", config=TrainingConfig(steps=1, head_steps=0)
    ).classifier
    seen, others = np.arange(90) % 3, 3 + np.arange(90) % added
    with torch.inference_mode():
        before, after = (model(draw(seen))["kind"].argmax(1).numpy() for model in (old, child))
        found = child(draw(others))["kind"].argmax(1).numpy()
    assert (before == seen).all()
    assert (after == seen).all()
    assert 0.4 < (found == others).mean() < 0.8  # six in ten


def test_agreement_counts_answers_that_an_added_class_takes() -> None:
    logits = np.array([[2.0, 1.0], [2.0, 1.0], [1.0, 2.0], [2.0, 1.0]])
    labels = np.array([0, 0, 1, 2])
    ids = tuple("wxyz")
    parent = Predictions({"t": ("a", "b")}, "per-task", ids, {}, {"t": logits})
    wide = np.concatenate([logits, np.array([[0.0], [3.0], [0.0], [3.0]])], 1)
    child = Predictions({"t": ("a", "b", "c")}, "per-task", ids, {"t": labels}, {"t": wide})
    assert metrics.agreement(parent, child, "t").tolist() == [1.0, 0.0, 1.0]  # the last shows the added class


def test_half_of_two_added_classes_is_learned() -> None:
    """Always answering one of them would be as often right, and would lose every old class: it is no chance level."""
    labels = np.arange(80) % 2 + 3
    logits = np.zeros((80, 5), np.float32)
    logits[np.arange(80), np.where(np.arange(80) % 4 < 2, labels, 0)] = 1.0  # half are given to an old class
    parent = Predictions({"t": ("a", "b", "c")}, "per-task", tuple(map(str, range(80))), {}, {"t": logits[:, :3]})
    child = parent._replace(classes={"t": tuple("abcde")}, labels={"t": labels}, logits={"t": logits})
    _, new = compute_task_results({"new": child, "new-parent": parent}, "t")
    assert new.added_to == "t"
    assert new.child
    assert new.child.mean == 0.5
    assert not is_at_chance(new)


def test_widened_model_learns_another_task(
    alice: Path, more_folder: Path, new_folder: Path, old_folder: Path, tmp_path: Path
) -> None:
    method = "distill + ewc(images=16)"
    wide = taskgraft.extend(
        alice, more_folder, tmp_path / "wide", task="shape", into=True, method=method, config=RUN
    ).out
    both = taskgraft.extend(wide, new_folder, tmp_path / "both", task="paint", method=method, config=RUN)
    assert [len(task.classes) for task in both.bundle.classifier.tasks] == [5, 4]
    assert both.bundle.memory["ewc"]["importance"]["heads.1.weight"].shape[0] == 2  # the added rows have a head


@pytest.mark.parametrize(
    ("task", "message"),
    [("size", "has no such task; it has shape"), ("shape", "already has all 3 classes")],
)
def test_into_refuses_unknown_task_and_known_classes(
    alice: Path, old_folder: Path, tmp_path: Path, task: str, message: str
) -> None:
    with pytest.raises(TaskgraftError, match=message):
        taskgraft.extend(alice, old_folder, tmp_path / "x", task=task, into=True, config=RUN)
    assert not (tmp_path / "x").exists()


def test_train_keep_records_memory(old_folder: Path, new_folder: Path, alice: Path, tmp_path: Path) -> None:
    first = train(
        old_folder, tmp_path / "first", task="shape", model="test_resnet", preprocessing="32 squash bilinear half",
        config=RUN, keep="ewc(images=16) + si",
    )  # fmt: skip
    assert set(first.bundle.memory) == {"ewc", "si"}
    kept = taskgraft.open_parent(str(first.out)).memory["si"]["importance"]
    assert kept["heads.0.weight"].shape == (3, 96)
    both = taskgraft.extend(first.out, new_folder, tmp_path / "both", task="paint", method="si", config=RUN)
    assert "si" in both.record.history[-1].terms
    with pytest.raises(TaskgraftError, match="which this parent lacks"):
        taskgraft.extend(alice, new_folder, tmp_path / "x", task="paint", method="si", config=RUN)
    with pytest.raises(TaskgraftError, match="distill records nothing"):
        train(old_folder, tmp_path / "y", keep="distill")


def test_record_has_flops_and_latency(alice: Path, new_folder: Path, old_folder: Path, tmp_path: Path) -> None:
    done = taskgraft.extend(alice, new_folder, tmp_path / "both", task=NEW.name, config=RUN, old_val=[old_folder])
    assert done.record.method == "branch"
    assert done.record.tasks[0].forgetting
    assert (done.record.tasks[0].forgetting.low, done.record.tasks[0].forgetting.high) == (0, 0)
    assert 1.5 < done.record.flops["child"] / done.record.flops["parent"] < 2
    assert "x the FLOPs" in (tmp_path / "both/report.html").read_text()
    assert "timm alone cannot rebuild it" in (tmp_path / "both/README.md").read_text()
