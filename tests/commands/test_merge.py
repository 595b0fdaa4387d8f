"""Merge: two finished models teach one plain network, without labels; its baselines; and what it refuses."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

import taskgraft
from forks import last_line, run_cli
from taskgraft import TrainingConfig, data, report
from taskgraft.bundle import open_parent
from taskgraft.bundle.model_card import strip_paths
from taskgraft.config import COMPRESSION_DEFAULTS
from taskgraft.errors import InputError
from taskgraft.models.inference import compute_logits
from taskgraft.pipeline.merging import open_merge
from taskgraft.pipeline.request import MergeRequest
from taskgraft.types import Callbacks
from toys import NEW, OLD, make_images, write_folder

pytestmark = pytest.mark.usefixtures("no_charts")
CONFIG = replace(
    COMPRESSION_DEFAULTS, steps=60, batch_size=16, lr=0.003, warmup_steps=5, eval_every=20, save_every=20,
    precision="fp32",
)  # fmt: skip
TRAINING = TrainingConfig(steps=30, batch_size=12, lr=0.01, head_steps=0, eval_every=30, precision="fp32")


@pytest.fixture(scope="module")
def painter(new_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stranger: another architecture, size and normalization; its task is paint."""
    out = tmp_path_factory.mktemp("painter") / "bundle"
    taskgraft.train(
        new_folder, out, task="paint", model="test_efficientnet", preprocessing="48 squash bilinear imagenet",
        config=TRAINING,
    )  # fmt: skip
    return out


@pytest.fixture(scope="module")
def sibling(alice: Path, new_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the same layers as alice, which knows paint alone."""
    out = tmp_path_factory.mktemp("sibling") / "bundle"
    taskgraft.train(new_folder, out, task="paint", model="test_resnet", weights=str(alice), config=TRAINING)
    return out


@pytest.fixture(scope="module")
def camera(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of both kinds in one folder."""
    folder = tmp_path_factory.mktemp("camera")
    write_folder(folder / "shapes", OLD, 36, 11)
    write_folder(folder / "paints", NEW, 36, 12)
    return folder


@pytest.fixture(scope="module")
def merged(
    alice: Path,
    painter: Path,
    camera: Path,
    old_folder: Path,
    new_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> taskgraft.Extension:
    """Two strangers in one network."""
    out = tmp_path_factory.mktemp("merged") / "bundle"
    val = [old_folder / "val", new_folder / "val"]
    return taskgraft.merge(alice, painter, out, images=[camera / "shapes", camera / "paints"], val=val, config=CONFIG)


def test_two_strangers_become_one_plain_network(merged: taskgraft.Extension, alice: Path) -> None:
    plain, first = open_parent(merged.out).classifier, open_parent(alice)
    assert [task.name for task in plain.tasks] == ["shape", "paint"]
    assert merged.record.one_backbone
    assert open_parent(merged.out).preprocessing == first.preprocessing
    for result in merged.record.tasks:
        assert result.parent
        assert result.child
        assert result.agreement
        assert result.parent.mean > 0.7, "the teachers have something to teach"
        assert result.child.mean > 0.9 * result.parent.mean, result.name
    network = timm.create_model(f"local-dir:{merged.out}", pretrained=True).eval()
    images = data.normalize(make_images(8, OLD, 5), 0, 8)
    outputs = compute_logits(plain, images)
    with torch.inference_mode():
        torch.testing.assert_close(network(images), torch.cat([outputs["shape"], outputs["paint"]], 1))


def test_record_and_report_name_both_models(merged: taskgraft.Extension, alice: Path, painter: Path) -> None:
    assert (merged.record.parent["source"], merged.record.parent["other"]) == (str(alice), str(painter))
    page = report.render_run(merged.record, merged.predictions)
    names = f"{alice.name} and {painter.name}"
    assert f"{names} were merged into one backbone, a test_resnet, on" in page
    assert f"teachers {names}" in page
    passed_on = strip_paths(merged.record.parent)
    assert passed_on["other"] == painter.name, "where a model lay is nobody's business"


def test_no_label_is_read(
    merged: taskgraft.Extension, alice: Path, painter: Path, camera: Path, tmp_path: Path
) -> None:
    """Without labeled images there is agreement, which then selects the step, and no accuracy."""
    child = taskgraft.merge(alice, painter, tmp_path / "one", images=camera, config=replace(CONFIG, steps=40))
    assert child.record.score is None
    for result in child.record.tasks:
        assert result.child is None
        assert result.agreement
        assert result.agreement.mean > 0.5
    best = max(
        (line for line in child.record.history if line.step and line.agreement),
        key=lambda line: (sum(line.agreement.values()), -line.step),
    )
    assert child.record.step == best.step
    lines = report.summarize_run(child.record).to_lines()
    assert "shape, paint not measured" in lines[0]
    assert lines[-1].startswith("next, measure the old tasks: taskgraft merge ")
    assert "--val DIR" in lines[-1]
    assert "Accuracy unknown, agreement measured" in report.render_run(child.record, child.predictions)
    partly = child.record.model_copy(update={"tasks": [merged.record.tasks[0], child.record.tasks[1]]})
    assert "Accuracy partly unknown" in report.render_run(partly, {})
    judgement = report.summarize_run(partly).judgement
    assert judgement.startswith(("no ", "significant "))
    assert "; forgetting of paint unknown" in judgement


def test_models_of_one_ancestor_are_compared_with_merged_weights(
    alice: Path, sibling: Path, camera: Path, old_folder: Path, new_folder: Path, tmp_path: Path
) -> None:
    val = [old_folder / "val", new_folder / "val"]
    child = taskgraft.merge(
        alice, sibling, tmp_path / "one", images=camera, val=val, ancestor=alice, config=replace(CONFIG, steps=20)
    )
    assert set(child.record.baselines) == {"weight averaging", "task arithmetic", "TIES"}
    assert all(set(values) == {"shape", "paint"} for values in child.record.baselines.values())
    page = report.render_run(child.record, child.predictions)
    assert "task arithmetic" in page
    assert "Merging the weights alone" in page
    assert "shape and paint on one backbone" in page
    assert "merging the weights alone, without images: " in report.summarize_run(child.record).to_lines()[3]


def test_a_finished_merge_is_read(
    merged: taskgraft.Extension, alice: Path, painter: Path, camera: Path, old_folder: Path, new_folder: Path
) -> None:
    val = [old_folder / "val", new_folder / "val"]
    before = (merged.out / "model.safetensors").stat().st_mtime_ns
    images = [camera / "shapes", camera / "paints"]
    again = taskgraft.merge(alice, painter, merged.out, images=images, val=val, config=CONFIG)
    assert (merged.out / "model.safetensors").stat().st_mtime_ns == before
    assert again.record == merged.record
    assert again.record.reproduce_command.count("--images") == 2


def test_shared_tasks_are_answered_by_the_first_model(
    plain: Path, alice: Path, sibling: Path, branched: Path, camera: Path, new_folder: Path, tmp_path: Path
) -> None:
    lines: list[str] = []
    child = taskgraft.merge(
        alice, branched, tmp_path / "one", images=camera, config=replace(CONFIG, steps=2),
        callbacks=taskgraft.Callbacks(info=lines.append),
    )  # fmt: skip
    assert [task.name for task in child.record.tasks] == ["shape", "paint"]
    assert any("both models answer shape (100.0% equal" in line for line in lines)
    with pytest.raises(InputError, match="nothing to merge"):
        taskgraft.merge(plain, alice, tmp_path / "two", images=camera, config=CONFIG)


def test_the_first_model_may_be_a_weights_file(alice: Path, painter: Path, camera: Path, tmp_path: Path) -> None:
    bundle = open_parent(alice)
    save_file(dict(bundle.classifier.backbone.state_dict()) | {
        f"{bundle.head}.{name}": value for name, value in bundle.classifier.linears()[0].state_dict().items()
    }, tmp_path / "shape.safetensors")  # fmt: skip
    (tmp_path / "classes.txt").write_text("\n".join(bundle.classifier.tasks[0].classes))
    child = taskgraft.merge(
        tmp_path / "shape.safetensors", painter, tmp_path / "one", images=camera, arch=bundle.arch,
        labels=tmp_path / "classes.txt", preprocessing=bundle.preprocessing.to_text(), config=replace(CONFIG, steps=2),
    )  # fmt: skip
    assert list(child.record.tasks[0].classes) == list(bundle.classifier.tasks[0].classes)
    assert f"--arch {bundle.arch}" in child.record.reproduce_command
    assert "--labels" in child.record.reproduce_command


def test_tasks_of_one_name_with_other_classes_are_refused(
    alice: Path, new_folder: Path, camera: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    taskgraft.train(new_folder, other, task="shape", model="test_resnet", config=replace(TRAINING, steps=1))
    done = run_cli("merge", alice, other, tmp_path / "out", "--images", camera, "--cache", "none")
    assert done.returncode == 2, done.stderr
    assert "both models have a task 'shape', with different classes" in last_line(done)
    assert not (tmp_path / "out").exists()


def test_training_stops_early_when_agreement_no_longer_rises(
    alice: Path, painter: Path, camera: Path, tmp_path: Path
) -> None:
    config = replace(CONFIG, steps=60, eval_every=2, patience=2, lr=1e-9)
    child = taskgraft.merge(alice, painter, tmp_path / "one", images=camera, config=config)
    assert child.record.history[-1].step < 20
    assert child.record.step < child.record.history[-1].step


def test_useless_images_are_named(alice: Path, painter: Path, tmp_path: Path) -> None:
    """Images that hardly differ tell nothing: nor do the answers."""
    (tmp_path / "images").mkdir()
    for number in range(6):
        Image.new("RGB", (32, 32), (number, 0, 0)).save(tmp_path / "images" / f"{number}.png")
    lines: list[str] = []
    child = taskgraft.merge(
        alice, painter, tmp_path / "one", images=tmp_path / "images", config=replace(CONFIG, steps=2),
        callbacks=taskgraft.Callbacks(info=lines.append),
    )  # fmt: skip
    for task in ("shape", "paint"):
        assert any(f"they say next to nothing about {task}" in note for note in child.record.notes)
        assert any(f"they say next to nothing about {task}" in line for line in lines)


def test_one_backbone_is_one_flag(alice: Path, new_folder: Path, old_folder: Path, tmp_path: Path) -> None:
    config = TrainingConfig(steps=4, batch_size=8, head_steps=4, eval_every=4, precision="fp32")
    out = tmp_path / "both"
    child = taskgraft.extend(
        alice, new_folder, out, task="paint", old_val=old_folder / "val", config=config, one_backbone=True
    )
    assert child.record.one_backbone
    assert child.record.config["steps"] == 4
    assert not taskgraft.load(out / "teacher").record.one_backbone
    assert child.record.parent["source"] == str(out / "teacher")
    with pytest.raises(InputError, match="adds no side network"):
        taskgraft.extend(
            alice, new_folder, tmp_path / "no", task="paint", method="distill", config=config, one_backbone=True
        )


def test_small_folders_count_as_much_as_large_ones(alice: Path, painter: Path, camera: Path, tmp_path: Path) -> None:
    """A task that only a few images show is not drowned by the other's; the record counts each image once."""
    few = tmp_path / "few"
    few.mkdir()
    for file in sorted((camera / "paints").rglob("*.png"))[:12]:
        (few / file.name).write_bytes(file.read_bytes())
    lines: list[str] = []
    request = MergeRequest(str(alice), str(painter), (camera / "shapes", few), config=CONFIG)
    opened = open_merge(request, None, Callbacks(info=lines.append))
    train = opened.images.new.train
    assert train is not None
    counts = Counter(Path(name).is_relative_to(few) for name in train.names)
    assert abs(counts[True] - counts[False]) <= 1, counts
    assert "images of smaller folders are shown more often, so that all folders count the same" in lines
    assert opened.images.described["new"]["images"]["train"] == len(set(train.names)) < len(train.names)
