"""Compress: a finished model teaches one plain network; the engine's parts, the whole run, and what it refuses."""

from __future__ import annotations

import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

import taskgraft
from forks import last_line, run_cli, start_cli
from taskgraft import TrainingConfig, data, report
from taskgraft.bundle import open_parent
from taskgraft.bundle.student import START, build_student, has_random_weights
from taskgraft.config import COMPRESSION_DEFAULTS
from taskgraft.errors import InputError
from taskgraft.methods import distill
from taskgraft.models.inference import compute_logits, predict
from taskgraft.pipeline.compression import estimate_batchnorm, fit_heads
from taskgraft.report import formatting
from taskgraft.results.record import Interval
from taskgraft.types import MIXED_IN, UNLABELED, Batch
from toys import NEW, OLD, make_data, make_images

pytestmark = pytest.mark.usefixtures("no_charts")
CONFIG = replace(
    COMPRESSION_DEFAULTS, steps=40, batch_size=16, lr=0.003, warmup_steps=5, eval_every=20, save_every=5,
    precision="fp32",
)  # fmt: skip


@pytest.fixture(scope="module")
def one(
    branched: Path, new_folder: Path, old_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> taskgraft.Extension:
    """The model with a branch, on one backbone."""
    out = tmp_path_factory.mktemp("one") / "bundle"
    return taskgraft.compress(
        branched, new_folder, out, unlabeled=old_folder / "train", old_val=old_folder / "val", config=CONFIG
    )


def test_the_result_is_one_plain_network_with_both_tasks(one: taskgraft.Extension, branched: Path, alice: Path) -> None:
    plain, teacher, parent = (open_parent(path).classifier for path in (one.out, branched, alice))
    assert [task.name for task in plain.tasks] == [task.name for task in teacher.tasks] == ["shape", "paint"]
    assert not len(plain.extras)
    assert one.record.one_backbone
    names = {name for name, _ in plain.backbone.named_parameters()}
    assert names == {name for name, _ in parent.backbone.named_parameters()}
    assert one.record.flops["child"] < 0.7 * one.record.flops["parent"]
    network = timm.create_model(f"local-dir:{one.out}", pretrained=True).eval()
    images = data.normalize(make_images(8, OLD, 5), 0, 8)
    outputs = compute_logits(plain, images)
    with torch.inference_mode():
        torch.testing.assert_close(network(images), torch.cat([outputs["shape"], outputs["paint"]], 1))


def test_the_student_is_measured_beside_its_teacher_on_every_task(one: taskgraft.Extension) -> None:
    for result in one.record.tasks:
        assert result.parent
        assert result.child
        assert result.forgetting
        assert result.child.mean > result.parent.mean - 0.1, result.name
    assert [result.new for result in one.record.tasks] == [False, True]
    assert set(one.bundle.cards) == {"shape", "paint"}
    assert one.bundle.lineage[-1]["method"].startswith("distill(")


def test_labels_of_unlabeled_images_are_never_read(
    one: taskgraft.Extension, branched: Path, new_folder: Path, old_folder: Path, tmp_path: Path
) -> None:
    """Images in one flat folder teach the same as in a folder for each class."""
    (tmp_path / "flat").mkdir()
    for file in (old_folder / "train").rglob("*.png"):
        shutil.copy(file, tmp_path / "flat" / f"{file.parent.name}-{int(file.stem):03d}.png")
    named = tmp_path / "named"
    for file in (tmp_path / "flat").iterdir():
        (named / file.name.split("-")[0]).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, named / file.name.split("-")[0] / file.name)
    config = replace(CONFIG, steps=5)
    children = [
        taskgraft.compress(branched, new_folder, tmp_path / name, unlabeled=path, config=config)
        for name, path in (("a", tmp_path / "flat"), ("b", named), ("c", ()))
    ]
    a, b, c = (child.bundle.classifier.state_dict() for child in children)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)


def test_a_stopped_compress_resumes_to_the_same_bits(
    one: taskgraft.Extension, branched: Path, new_folder: Path, old_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "one"
    words = [
        "compress",
        branched,
        new_folder,
        out,
        "--unlabeled",
        old_folder / "train",
        "--old-val",
        old_folder / "val",
    ]
    words += ["--steps", 40, "--batch-size", 16, "--lr", 0.003, "--warmup-steps", 5, "--head-steps", 0]
    words += ["--eval-every", 20, "--save-every", 5, "--precision", "fp32", "--cache", "none"]
    process = start_cli(*words)
    deadline = time.monotonic() + 100
    while not (out / "state" / "step-000000005").is_dir():
        assert process.is_running(), "it ended before step 5"
        assert time.monotonic() < deadline, "it hangs before step 5"
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    assert process.wait().returncode == 143
    run_cli(*words, "--resume", check=True)
    for name in ("model.safetensors", "metrics.jsonl"):
        assert (out / name).read_bytes() == (one.out / name).read_bytes(), name


def test_another_architecture_is_a_smaller_student(
    branched: Path, new_folder: Path, old_folder: Path, tmp_path: Path
) -> None:
    child = taskgraft.compress(
        branched, new_folder, tmp_path / "small", student="test_efficientnet", old_val=old_folder / "val",
        config=replace(CONFIG, steps=2),
    )  # fmt: skip
    assert child.bundle.arch == child.record.architecture == "test_efficientnet"
    assert "A test_efficientnet for 2 tasks" in report.format_model_card(child.record)
    assert "to one backbone, a test_efficientnet, on" in report.render_run(child.record, child.predictions)
    assert open_parent(tmp_path / "small").classifier.tasks == open_parent(branched).classifier.tasks


def test_a_student_of_random_weights_gets_the_statistics_of_the_images(branched: Path) -> None:
    """Without them a first fit of the heads would be to features that no BatchNorm has brought to size."""
    teacher = open_parent(branched)
    tasks = teacher.classifier.tasks
    student, _ = build_student(teacher, tasks, tasks[-1].name, "test_resnet", 0)
    images = make_images(20, OLD, 3)
    estimate_batchnorm(student.classifier, [images])
    seen: dict[str, torch.Tensor] = {}
    norms = {n: m for n, m in student.classifier.named_modules() if isinstance(m, torch.nn.BatchNorm2d)}
    first, norm = next(iter(norms.items()))
    norm.register_forward_hook(lambda module, inputs, output: seen.update({first: inputs[0]}))
    compute_logits(student.classifier, data.normalize(images, 0, 20))
    torch.testing.assert_close(norm.running_mean, seen[first].mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var, seen[first].var((0, 2, 3)), rtol=1e-4, atol=1e-6)
    assert all(bool((norm.running_var != 1).any()) for norm in norms.values())


def test_a_student_may_start_from_a_model(
    branched: Path, alice: Path, plain: Path, new_folder: Path, tmp_path: Path
) -> None:
    teacher = open_parent(branched)
    tasks, start = teacher.classifier.tasks, open_parent(alice).classifier.backbone.state_dict()
    student, missing = build_student(teacher, tasks, tasks[-1].name, str(alice), 0)
    assert [has_random_weights(name) for name in ("resnet18", "resnet18.a1_in1k", None)] == [True, False, False]
    assert missing == [task.name for task in tasks], "its heads answer other questions"
    for name, value in student.classifier.backbone.state_dict().items():
        assert torch.equal(value, start[name]), name
    child = taskgraft.compress(
        branched, new_folder, tmp_path / "one", student=str(plain), config=replace(CONFIG, steps=2)
    )
    assert child.record.one_backbone
    assert f"--student {plain} " in child.record.reproduce_command
    with pytest.raises(InputError, match="is more than one backbone"):
        build_student(teacher, tasks, tasks[-1].name, str(branched), 0)
    with pytest.raises(InputError, match="is the model that is read; choose another OUT"):
        taskgraft.compress(branched, new_folder, plain, student=str(plain), config=replace(CONFIG, steps=2))


def test_one_task_too_is_compressed_into_a_smaller_network(alice: Path, old_folder: Path, tmp_path: Path) -> None:
    small = taskgraft.compress(
        alice, old_folder, tmp_path / "small", student="test_resnet", config=replace(CONFIG, steps=2)
    )
    assert small.record.parent["tasks"] == ["shape"]
    assert small.record.parameters["parent"] > 0
    assert set(small.record.flops) == {"child", "parent"}
    assert len(small.bundle.lineage) == len(open_parent(alice).lineage) + 1
    lines = report.summarize_run(small.record).to_lines()
    assert lines[3].startswith("right in the teacher and wrong in the student: shape "), lines[3]


def test_heads_start_as_the_least_squares_fit_of_the_teacher(plain: Path) -> None:
    """A student with its teacher's backbone answers like the teacher before the first step."""
    teacher = open_parent(plain)
    student, missing = build_student(teacher, teacher.classifier.tasks, "paint", None, 0)
    assert missing == []
    for head in student.classifier.linears():
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
    images = make_images(200, NEW, 5)
    fit_heads(student.classifier, ["shape", "paint"], [images], teacher.classifier)
    before, after = (predict(model.classifier, images) for model in (teacher, student))
    for task in ("shape", "paint"):
        agreement = (before.logits[task].argmax(1) == after.logits[task].argmax(1)).mean()
        assert agreement > 0.95, task


def test_a_student_starts_between_the_shared_weights_and_the_branch(branched: Path) -> None:
    teacher = open_parent(branched)
    student, missing = build_student(teacher, teacher.classifier.tasks, "paint", None, 0)
    assert missing == []  # the branch's head fits: its stages are a copy of the student's
    for mine, given in zip(student.classifier.linears(), teacher.classifier.linears(), strict=True):
        assert torch.equal(mine.weight, given.weight)
    shared = teacher.classifier.backbone.state_dict()
    branch = teacher.classifier.extras[0].get_submodule("net").state_dict()
    moved = 0
    for name, value in student.classifier.backbone.state_dict().items():
        if not value.is_floating_point():
            continue
        expected = torch.lerp(shared[name], branch.get(name, shared[name]), START)
        torch.testing.assert_close(value, expected, msg=name)
        moved += not torch.equal(value, shared[name])
    assert moved > 10


def test_blended_images_lose_their_labels_and_mixed_in_ones_stay() -> None:
    images = torch.rand(6, 3, 8, 8)
    batch = Batch(images, {"paint": torch.arange(6)}, torch.tensor([0, 1, 2, 3, MIXED_IN, MIXED_IN]), torch.zeros(6))
    for seed in range(8):  # mixup and CutMix
        blended = distill._blend(batch, np.random.default_rng(seed))
        assert blended.rows.tolist() == [UNLABELED] * 4 + [MIXED_IN] * 2
        assert blended.labels["paint"].tolist() == [-1] * 4 + [4, 5]
        assert torch.equal(blended.images[4:], images[4:])
        assert blended.images[:4].amin() >= images[:4].amin()
        assert blended.images[:4].amax() <= images[:4].amax()
    assert torch.equal(batch.images, images)


def test_half_of_each_batch_is_unlabeled() -> None:
    sources = make_data()._replace(unlabeled=make_images(9, OLD, 8), augment="resized-crop+flip")
    batch = data.build_batch(sources, 3, 10)
    alone = data.build_batch(sources._replace(unlabeled=None), 3, 5)
    assert torch.equal(batch.images[:5], alone.images)
    assert batch.rows[5:].tolist() == [UNLABELED] * 5
    assert batch.labels["paint"][5:].tolist() == [-1] * 5
    assert not torch.equal(batch.images[5:], data.build_batch(sources, 4, 10).images[5:])


def test_lwf_too_asks_the_teacher_and_not_the_untrained_student(
    branched: Path, new_folder: Path, tmp_path: Path
) -> None:
    config = replace(CONFIG, steps=1, head_steps=1)
    child = taskgraft.compress(branched, new_folder, tmp_path / "one", method="lwf", config=config)
    terms = [line.terms["lwf"] for line in child.record.history if "lwf" in line.terms]
    assert terms[0] > 0.01  # its own first answers would differ by nothing at all


def test_folders_of_one_name_are_both_in_the_record(
    branched: Path, new_folder: Path, old_folder: Path, tmp_path: Path
) -> None:
    paths = [old_folder / "train", new_folder / "train"]
    config = replace(CONFIG, steps=1, batch_size=1)  # no room for a second half
    child = taskgraft.compress(branched, new_folder, tmp_path / "one", unlabeled=paths, config=config)
    assert {"unlabeled: train", "unlabeled 2: train"} <= child.record.data.keys()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--unlabeled", "{empty}"], "no readable image"),
        (["--unlabeled", "{missing}"], "does not exist"),
        (["--student", "resnet1"], "--student: 'resnet1' is not a file, folder or timm model; did you mean"),
        (["--method", "distill(blend=0.5)"], "add teacher=live"),
        (["--method", "finetune"], "has no teacher"),
        (["--method", "taps(backbone=trained) + distill"], "taps adds a side network"),
        (["--softmax", "joint"], "compress it with the same"),
    ],
)
def test_bad_input_is_one_line(
    branched: Path, new_folder: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("nothing to see")
    paths = {"empty": str(tmp_path / "empty"), "missing": str(tmp_path / "missing")}
    words = [word.format(**paths) for word in words]
    done = run_cli("compress", branched, new_folder, tmp_path / "out", *words, "--cache", "none")
    assert done.returncode == 2, done.stderr
    assert message in last_line(done)
    assert not (tmp_path / "out").exists()


def test_unlabeled_images_need_a_method_with_a_teacher(alice: Path, new_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no teacher"):
        taskgraft.extend(alice, new_folder, tmp_path / "out", task="paint", unlabeled=new_folder)


def test_extend_learns_from_unlabeled_images_too(
    alice: Path, new_folder: Path, old_folder: Path, tmp_path: Path
) -> None:
    config = TrainingConfig(steps=4, batch_size=8, head_steps=0, eval_every=4, precision="fp32")
    children = {
        name: taskgraft.extend(
            alice, new_folder, tmp_path / name, task="paint", method="distill", config=config, unlabeled=unlabeled
        )
        for name, unlabeled in (("with", old_folder / "train"), ("without", ()))
    }
    weights = {name: child.bundle.classifier.state_dict() for name, child in children.items()}
    assert not all(torch.equal(weights["with"][name], weights["without"][name]) for name in weights["with"])
    assert "unlabeled: train" in children["with"].record.data
    assert f"--unlabeled {old_folder / 'train'}" in children["with"].record.reproduce_command


def test_the_summary_compares_every_task(one: taskgraft.Extension) -> None:
    lines = report.summarize_run(one.record).to_lines()
    for task in one.record.tasks:
        assert task.parent
        assert f"{task.name} {formatting.percent(task.parent.mean)} → " in lines[0]
    assert "parameters fewer (" in lines[2]
    assert "x the FLOPs" in lines[2]
    assert lines[-1] == f"next, use the model: taskgraft predict {one.out} IMAGES"


def test_the_report_names_teacher_and_student_and_the_flips_of_every_task(one: taskgraft.Extension) -> None:
    line = report.summarize_run(one.record).to_lines()[3]
    assert line.startswith("right in the teacher and wrong in the student: "), line
    page = report.render_run(one.record, one.predictions)
    for title in ("Teacher (%)", "Student (%)", "Data and teacher"):
        assert title in page, title
    assert "Parent (%)" not in page
    for task in one.record.tasks:
        assert task.negative_flips
        assert task.child
        count = round(task.negative_flips.mean * task.child.n)
        assert f"{task.name} {formatting.percent(task.negative_flips.mean)} %" in line
        assert f"{task.name}: {count} right before and wrong now" in page
    assert "Teacher | This model" in report.format_model_card(one.record)


def test_a_lossy_compression_proposes_a_longer_one(one: taskgraft.Extension) -> None:
    lossy = [
        task.model_copy(update={"forgetting": Interval(mean=0.2, low=0.1, high=0.3, n=24)}) for task in one.record.tasks
    ]
    lines = report.summarize_run(one.record.model_copy(update={"tasks": tuple(lossy)})).to_lines()
    assert lines[-1].startswith(f"next, teach it longer: taskgraft compress {one.record.reproduce_command.split()[2]} ")
    assert f"{one.out}-longer " in lines[-1]
    assert "--steps 80" in lines[-1]


def test_a_comparison_shows_unlabeled_images_to_methods_with_a_teacher_alone(
    alice: Path, new_folder: Path, old_folder: Path, tmp_path: Path
) -> None:
    config = TrainingConfig(steps=2, batch_size=8, head_steps=0, eval_every=2, precision="fp32")
    request = taskgraft.Request(alice, new_folder, "paint", config=config, unlabeled=old_folder / "train")
    variants = [taskgraft.Variant(name, name, config) for name in ("finetune", "distill")]
    result = taskgraft.compare(request, variants, tmp_path / "table", seeds=1, separate=0)
    seen = ["unlabeled: train" in variant.records[0].data for variant in result.variants]
    assert seen == [False, True]
    with pytest.raises(InputError, match="none of the methods has a teacher"):
        taskgraft.compare(request, variants[:1], tmp_path / "other", seeds=1, separate=0)
