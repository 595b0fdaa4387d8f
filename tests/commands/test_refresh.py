"""Refresh: a task learns images of another camera, and the old kind of image is measured beside them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import taskgraft
from cli_parsing import parse_line
from taskgraft.bundle import Bundle, open_parent, write_bundle
from taskgraft.config import REFRESH_DEFAULTS
from taskgraft.data.transforms import NORMS, Preprocessing
from taskgraft.errors import InputError
from taskgraft.models.classifier import widen
from taskgraft.models.inference import compute_logits
from taskgraft.report import commands, summarize_run
from taskgraft.results.record import Interval
from toys import NEW, OLD, start_run, write_folder

pytestmark = pytest.mark.usefixtures("no_charts")
CONFIG = replace(
    REFRESH_DEFAULTS, steps=40, batch_size=12, lr=0.003, warmup_steps=2, eval_every=20, precision="fp32"
)  # fmt: skip
FEW = replace(CONFIG, steps=2, eval_every=2)


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shapes as another camera shows them: dark and with channels that are exchanged."""
    root = tmp_path_factory.mktemp("night")
    write_folder(root / "train", OLD, 36, 21)
    write_folder(root / "val", OLD, 24, 22)
    for file in root.rglob("*.png"):
        pixels = np.asarray(Image.open(file))[:, :, ::-1] // 2
        Image.fromarray(np.ascontiguousarray(pixels)).save(file)
    return root


@pytest.fixture(scope="module")
def branch_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose task paint has a branch of its own, and two heads; not trained."""
    folder = tmp_path_factory.mktemp("branched") / "bundle"
    classifier = widen(start_run("branch")[0].classifier, "paint", ("black", "white"), 0)
    for head in classifier.linears():
        torch.nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(5))
    preprocessing = Preprocessing(32, "squash", 1.0, "bilinear", *NORMS["half"])
    folder.mkdir()
    write_bundle(
        folder, Bundle(classifier, preprocessing, {}, "toy", "0", "test_resnet", "fc"), method="branch", parent={}
    )
    return folder


def test_refresh_learns_the_new_camera_and_measures_both(
    alice: Path, night: Path, old_folder: Path, tmp_path: Path
) -> None:
    done = taskgraft.refresh(alice, night, tmp_path / "out", old_val=old_folder / "val", config=CONFIG)
    assert done.tasks == (OLD,)
    old, new = done.record.tasks
    assert (old.name, old.new, new.name, new.new, new.refreshes) == ("shape", False, "shape, new images", True, "shape")
    assert old.parent
    assert old.child
    assert new.parent
    assert new.child
    assert new.child.mean > new.parent.mean + 0.2  # the camera changed everything, and was learned
    assert old.child.mean + new.child.mean > old.parent.mean + new.parent.mean  # what the weight of wise is chosen by
    assert old.negative_flips
    assert new.negative_flips
    assert old.agreement is None  # its answers to the new images are meant to change
    assert any("negative flips" in note for note in done.record.notes)
    assert np.sum(done.bundle.cards["shape"]["confusion"]) == 48  # the card knows both cameras
    summary = summarize_run(done.record)
    assert "the new images gained" in summary.judgement
    assert done.record.reproduce_command == (
        f"taskgraft refresh {alice} {night} {tmp_path / 'out'} --task shape --old-val {old_folder / 'val'} --steps 40 "
        "--batch-size 12 --lr 0.003 --warmup-steps 2 --precision fp32 --eval-every 20"
    )
    assert parse_line(done.record.reproduce_command) == "refresh"
    assert "New images learned" in (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert {parse_line(text) for _, text in commands.list_follow_ups(done.record)} >= {"refresh", "evaluate", "extend"}
    verified = taskgraft.load(tmp_path / "out")
    assert [entry["task"] for entry in verified.bundle.lineage] == ["shape, new images"]


def test_proposals_after_a_refresh_repeat_it(alice: Path, night: Path, tmp_path: Path) -> None:
    """Without old images nothing goes back; what went wrong decides what is proposed."""
    done = taskgraft.refresh(alice, night, tmp_path / "out", config=FEW)
    assert done.record.method == "distill(strength=0.3)"
    assert "refresh" in summarize_run(done.record).command
    old, new = done.record.tasks
    learned = new.model_copy(update={"chance": 0.0})
    judgement = summarize_run(done.record.model_copy(update={"tasks": (old, learned)})).judgement
    assert "forgetting of shape unknown" in judgement
    assert "images say nothing about it" in judgement
    lost, gained = Interval(mean=0.2, low=0.1, high=0.3, n=9), Interval(mean=-0.3, low=-0.4, high=-0.2, n=9)
    held = lost.model_copy(update={"mean": 0.0, "low": 0.0})
    for loss, change, flag in ((lost, gained, "--lr"), (held, held, "--steps")):
        updates = (
            old.model_copy(update={"child": lost, "forgetting": loss}),
            new.model_copy(update={"child": new.parent, "forgetting": change, "chance": 0.0}),
        )
        proposed = summarize_run(done.record.model_copy(update={"tasks": updates})).command
        assert parse_line(proposed) == "refresh"
        assert flag in proposed


def test_layers_of_its_own_alone_are_trained(branch_model: Path, new_folder: Path, tmp_path: Path) -> None:
    done = taskgraft.refresh(branch_model, new_folder, tmp_path / "out", config=FEW)
    before = open_parent(branch_model)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    old, new = compute_logits(before.classifier, images), compute_logits(done.bundle.classifier, images)
    assert torch.equal(old["shape"], new["shape"])
    assert not torch.equal(old["paint"], new["paint"])
    assert done.record.tasks[0].identical
    assert [head.out_features for head in done.bundle.classifier.linears()] == [3, 6]  # both heads of paint as one
    assert any("no new image of 2 of the 6 classes of paint (black, white)" in note for note in done.record.notes)
    again = taskgraft.refresh(done, new_folder, tmp_path / "again", task="paint", method="frozen", config=FEW)
    assert again.record.tasks[0].identical


def test_an_older_task_of_several_becomes_the_newest(plain: Path, night: Path, tmp_path: Path) -> None:
    """The heads change places, and every task keeps its own; what ewc stores follows them."""
    start = replace(CONFIG, steps=1, eval_every=1, lr=1e-9)
    method = "distill + ewc(images=8)"
    done = taskgraft.refresh(plain, night, tmp_path / "out", config=start, method=method)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    old = compute_logits(open_parent(plain).classifier, images)
    for task, logits in compute_logits(done.bundle.classifier, images).items():
        torch.testing.assert_close(logits, old[task], rtol=0, atol=1e-4)
    again = taskgraft.refresh(done, night, tmp_path / "again", config=start, method=method)
    assert again.bundle.memory["ewc"]["importance"]["heads.0.weight"].shape[0] == len(NEW.classes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "size"}, "has no such task; it has shape"),
        ({"method": "branch"}, "adds a side network for a new task"),
        ({"config": replace(FEW, softmax="joint")}, "was trained with --softmax per-task"),
    ],
)
def test_what_cannot_be_refreshed_is_refused(options: dict, message: str, alice: Path, night: Path, tmp_path: Path):
    with pytest.raises(InputError, match=message):
        taskgraft.refresh(alice, night, tmp_path / "x", **options)
    assert not (tmp_path / "x").exists()


def test_added_classes_are_refused(alice: Path, new_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="which the task 'shape' lacks; add it by taskgraft extend with --into"):
        taskgraft.refresh(alice, new_folder, tmp_path / "x")
