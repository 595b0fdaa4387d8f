"""The main job, end to end, at toy size, through the command line and the public functions."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

import taskgraft
from forks import run_cli, start_cli
from taskgraft import TaskgraftError, TrainingConfig, data, report
from taskgraft.bundle import open_parent
from taskgraft.data.dataset import open_images
from taskgraft.models.inference import predict
from taskgraft.results.predictions import load_predictions

pytestmark = pytest.mark.usefixtures("no_charts")
CONFIG = TrainingConfig(
    steps=12, batch_size=8, head_steps=10, eval_every=4, save_every=3, log_every=4, precision="fp32"
)
FLAGS = [
    "--steps", "12", "--batch-size", "8", "--head-steps", "10", "--eval-every", "4", "--save-every", "3",
    "--precision", "fp32", "--cache", "none",
]  # fmt: skip


def command(alice: Path, new: Path, old: Path, out: Path, *flags: str) -> list[str]:
    return ["extend", str(alice), str(new), str(out), "--task", "paint", "--old-val", str(old), *FLAGS, *flags]


def extend(alice: Path, new: Path, old: Path, out: Path, **options: object) -> taskgraft.Extension:
    arguments: dict = {"task": "paint", "config": CONFIG, "old_val": (old,), **options}
    return taskgraft.extend(alice, new, out, **arguments)


def test_extend_writes_bundle_and_evidence(alice: Path, new_folder: Path, old_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "both"
    done = extend(alice, new_folder, old_folder, out, method="distill + ewc(images=16)")
    for name in (
        "config.json", "model.safetensors", "memory.safetensors", "cards/shape.json", "cards/paint.json",
        "record.json", "metrics.jsonl", "predictions.npz", "report.html", "README.md", "run.json", "command.txt",
        "excluded.csv", "split.csv", "thumbnails.json",
    ):  # fmt: skip
        assert (out / name).is_file(), name
    assert [task.name for task in done.bundle.classifier.tasks] == ["shape", "paint"]
    shape, paint = done.record.tasks
    assert shape.parent
    assert shape.child
    assert shape.forgetting
    assert shape.agreement
    assert paint.child
    assert shape.forgetting.mean == pytest.approx(shape.parent.mean - shape.child.mean)
    best = max(np.mean(list(line.accuracy.values())) for line in done.record.history if line.step and line.accuracy)
    assert done.record.score == pytest.approx(best) == pytest.approx((shape.child.mean + paint.child.mean) / 2)
    assert {"data", "distill", "ewc"} <= done.record.history[-1].terms.keys()
    assert done.record.parent_history  # Alice's own training
    again = taskgraft.load(out)
    assert again.record == done.record
    assert np.array_equal(again.predictions["old"].logits["shape"], done.predictions["old"].logits["shape"])


def test_equal_runs_are_bit_identical(alice: Path, new_folder: Path, old_folder: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        extend(alice, new_folder, old_folder, tmp_path / name)
    for file in ("metrics.jsonl", "model.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    extend(alice, new_folder, old_folder, tmp_path / "three", config=TrainingConfig(**{**vars(CONFIG), "seed": 1}))
    assert (tmp_path / "one/metrics.jsonl").read_bytes() != (tmp_path / "three/metrics.jsonl").read_bytes()


def test_epochs_are_kept_in_record_and_command(alice: Path, new_folder: Path, old_folder: Path, tmp_path: Path) -> None:
    config = TrainingConfig(epochs=0.5, batch_size=8, head_steps=0, precision="fp32")
    child = extend(alice, new_folder, old_folder, tmp_path / "both", config=config, method="finetune")
    images = child.record.data["new"]["images"]["train"]
    assert child.record.history[-1].step == child.record.config["steps"] == -(-images // 16)
    assert ("steps", str(-(-images // 16)), f"0.5 epochs of {images} images") in child.record.settings
    assert "--epochs 0.5" in child.record.reproduce_command
    assert "--steps" not in child.record.reproduce_command


def test_patience_ends_the_run_at_the_step_it_says(
    alice: Path, new_folder: Path, old_folder: Path, tmp_path: Path
) -> None:
    """Nothing is learned at such a rate, so the first evaluation is the best; what came before the stop is the same."""
    config = TrainingConfig(**{**vars(CONFIG), "lr": 1e-9, "eval_every": 1, "head_steps": 0})
    whole = extend(alice, new_folder, old_folder, tmp_path / "whole", config=config, method="finetune")
    lines: list[str] = []
    config = TrainingConfig(**{**vars(config), "patience": 3})
    child = extend(
        alice, new_folder, old_folder, tmp_path / "stopped", config=config, method="finetune",
        callbacks=taskgraft.Callbacks(info=lines.append),
    )  # fmt: skip
    assert child.record.history == whole.record.history[:5]
    assert (tmp_path / "stopped/model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()
    sentence = "stopped early at step 4 of 12: no evaluation since step 1 was better (--patience 3)"
    assert sentence in lines
    assert sentence in child.record.notes
    assert "stopped early at step 4 of 12" in report.summarize_run(child.record).cost
    assert not any("stopped early" in note for note in whole.record.notes)


METHOD = ("--method", "distill + ewc(images=16)", "--eval-every", "1")


@pytest.fixture(scope="module")
def undisturbed(alice: Path, new_folder: Path, old_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run in a process of its own, which nobody kills."""
    out = tmp_path_factory.mktemp("undisturbed") / "both"
    words = [sys.executable, "-m", "taskgraft.cli", *command(alice, new_folder, old_folder, out, *METHOD)]
    subprocess.run(words, check=True, capture_output=True)
    return out


@pytest.mark.parametrize("after", [1, 8])
def test_resume_after_kill_is_bit_identical(
    alice: Path, new_folder: Path, old_folder: Path, tmp_path: Path, undisturbed: Path, after: int
) -> None:
    """Killed once metrics.jsonl shows step `after`; the same command with --resume ends in equal bits."""
    out = tmp_path / "killed"
    words = command(alice, new_folder, old_folder, out, *METHOD)
    process = start_cli(*words)
    lines = out / "metrics.jsonl"
    while process.is_running() and not (lines.exists() and f'"step":{after},' in lines.read_text()):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not json.loads((out / "run.json").read_text())["done"]
    refused = run_cli(*words)
    assert refused.returncode == 2
    assert "--resume" in refused.stderr
    assert refused.stderr.count("\n") == refused.stderr.count("parent:") + 1
    run_cli(*words, "--resume", check=True)
    for file in ("model.safetensors", "memory.safetensors", "metrics.jsonl"):
        assert (out / file).read_bytes() == (undisturbed / file).read_bytes(), file


def test_finished_run_is_read_and_other_settings_refused(
    alice: Path, new_folder: Path, old_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "both"
    first = extend(alice, new_folder, old_folder, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert extend(alice, new_folder, old_folder, out).record == first.record
    with pytest.raises(TaskgraftError, match=r"config\.lr was 0\.001, is 0\.02"):
        extend(alice, new_folder, old_folder, out, config=TrainingConfig(**{**vars(CONFIG), "lr": 0.02}))
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_without_old_images_agreement_is_the_proxy(alice: Path, new_folder: Path, tmp_path: Path) -> None:
    done = taskgraft.extend(alice, new_folder, tmp_path / "both", task="paint", config=CONFIG)
    shape, _ = done.record.tasks
    assert done.record.score is None
    assert done.record.step == CONFIG.steps
    assert shape.child is None
    assert shape.agreement
    assert "unknown" in " ".join(done.record.notes)


def test_timm_loads_child(alice: Path, new_folder: Path, old_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "both"
    done = extend(alice, new_folder, old_folder, out, method="distill")
    plain = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    result = open_images(new_folder, "paint", done.bundle.preprocessing, seed=0)
    assert result.val
    with torch.no_grad():
        joint = plain(data.normalize(result.val, 0, 24))
    own = predict(done.bundle.classifier, result.val)
    np.testing.assert_allclose(joint.numpy(), np.hstack([own.logits["shape"], own.logits["paint"]]), atol=1e-5)


def test_third_task(alice: Path, new_folder: Path, old_folder: Path, tmp_path: Path) -> None:
    method = "ewc(images=16) + distill"
    both = extend(alice, new_folder, old_folder, tmp_path / "both", method=method).out
    assert open_parent(str(both)).memory["ewc"]["importance"]
    third = extend(
        both, old_folder, new_folder, tmp_path / "three", task="shape again", method=method,
        old_val=(old_folder, new_folder),
    )  # fmt: skip
    assert [task.name for task in third.record.tasks] == ["shape", "paint", "shape again"]
    assert all(task.child for task in third.record.tasks)
    assert len(third.bundle.lineage) == 2
    assert not any("lineage" in entry["parent"] for entry in third.bundle.lineage)  # else it doubles at every step
    assert set(third.bundle.cards) == {"shape", "paint", "shape again"}


def test_non_finite_loss_stops_before_update(alice: Path, new_folder: Path, old_folder: Path, tmp_path: Path) -> None:
    config = TrainingConfig(**{**vars(CONFIG), "lr": 1e18, "clip_grad": 0.0, "schedule": "constant"})
    with pytest.raises(TaskgraftError, match="not finite") as caught:
        extend(alice, new_folder, old_folder, tmp_path / "bad", config=config)
    assert caught.value.exit_code == 4
    assert list((tmp_path / "bad/state").glob("step-*"))  # the last good checkpoint is kept


def test_compare_resumes_and_reports(alice: Path, new_folder: Path, old_folder: Path, tmp_path: Path) -> None:
    words = [
        "compare", alice, new_folder, tmp_path / "table", "--task", "paint", "--old-val", old_folder, *FLAGS,
        "--seeds", "2", "--lrs", "0.02,0.002", "--methods", "finetune; distill", "--separate", "2",
    ]  # fmt: skip
    first = run_cli(*words, check=True)
    second = run_cli(*words, check=True)
    assert first.stdout == second.stdout
    for label in ("baseline", "baseline (low rate)", "distill", "distill (low rate)"):
        assert f"| {label} |" in first.stdout or f"**{label}**" in first.stdout
    for name in ("comparison.json", "table.md", "report.html", "figure1.png", "figure2.png", "figure3.png"):
        assert (tmp_path / "table" / name).is_file()
    page = (tmp_path / "table/report.html").read_bytes()
    run_cli("report", tmp_path / "table", check=True)
    assert (tmp_path / "table/report.html").read_bytes() == page


def test_predictions_file_matches_model(alice: Path, new_folder: Path, old_folder: Path, tmp_path: Path) -> None:
    done = extend(alice, new_folder, old_folder, tmp_path / "both")
    stored = load_predictions(done.out / "predictions.npz")
    result = open_images(old_folder, "shape", done.bundle.preprocessing, seed=0, classes=("round", "square", "thin"))
    assert result.val
    now = predict(open_parent(str(done.out)).classifier, result.val)
    assert np.array_equal(stored["old"].logits["shape"], now.logits["shape"])
    assert set(stored) == {"new", "old", "new-parent", "old-parent"}


@pytest.mark.parametrize(
    ("method", "views", "message"),
    [("distill", 0, "needs fixed views"), ("ewc(labels=empirical)", 8, "needs labeled images")],
)
def test_refused_start_leaves_folder_free(
    alice: Path, new_folder: Path, old_folder: Path, tmp_path: Path, method: str, views: int, message: str
) -> None:
    out = tmp_path / "both"
    with pytest.raises(TaskgraftError, match=message):
        extend(
            alice,
            new_folder,
            old_folder,
            out,
            method=method,
            config=TrainingConfig(**{**vars(CONFIG), "views": views}),
        )
    assert extend(alice, new_folder, old_folder, out).record.score
