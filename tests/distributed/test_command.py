"""`extend --gpus 2`: a process is killed; the run goes on by itself, or later with another number of processes."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from forks import run_cli, start_cli
from taskgraft import TrainingConfig, extend

pytestmark = pytest.mark.usefixtures("no_charts")

CONFIG = TrainingConfig(
    steps=24, batch_size=8, head_steps=4, eval_every=12, save_every=6, precision="fp32", optimizer="sgd", lr=0.01
)
FLAGS = ["--steps", "24", "--batch-size", "8", "--head-steps", "4", "--eval-every", "12", "--save-every", "6"]
FLAGS += ["--precision", "fp32", "--optimizer", "sgd", "--lr", "0.01", "--cache", "none"]


@pytest.fixture(scope="module")
def single(alice: Path, old_folder: Path, new_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("single") / "both"
    extend(alice, new_folder, out, task="paint", method="distill", config=CONFIG, old_val=[old_folder])
    return out


def command(alice: Path, new: Path, old: Path, out: Path, *flags: str) -> list[str]:
    words = ["extend", str(alice), str(new), str(out), "--task", "paint", "--old-val", str(old), "--method", "distill"]
    return [*words, *FLAGS, *flags]


def run_and_kill_worker(words: list[str], out: Path) -> subprocess.CompletedProcess[str]:
    """Run a command and kill one of its two workers as soon as the checkpoint of step 12 is there."""
    process = start_cli(*words)
    deadline = time.monotonic() + 120
    while not (out / "state" / "step-000000012").is_dir():
        assert process.is_running(), "it ended before step 12"
        assert time.monotonic() < deadline, "it hangs before step 12"
        time.sleep(0.005)
    os.kill(workers_of(process.pid)[-1], signal.SIGKILL)
    return process.wait()


def workers_of(launcher: int) -> list[int]:
    done = subprocess.run(["pgrep", "-P", str(launcher)], capture_output=True, text=True, check=False)
    return sorted(map(int, done.stdout.split()))


def assert_close(out: Path, single: Path) -> None:
    actual, expected = load_file(out / "model.safetensors"), load_file(single / "model.safetensors")
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        distance = (actual[name].double() - value.double()).norm() / value.double().norm().clamp(min=1e-9)
        assert distance < 1e-4, f"{name}: {distance:.1e}"  # 24 steps, and the sums' order differs: measured 1e-6


def test_killed_process_is_restarted(
    alice: Path, new_folder: Path, old_folder: Path, single: Path, tmp_path: Path
) -> None:
    out = tmp_path / "both"
    done = run_and_kill_worker(command(alice, new_folder, old_folder, out, "--gpus", "2", "--max-restarts", "1"), out)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "resuming at step" in done.stderr
    assert done.stdout.count("model and report:") == 1
    assert_close(out, single)


@pytest.mark.skipif(torch.cuda.device_count() > 0, reason="on GPUs a refusal of too many is another one")
def test_resume_with_another_world_size(
    alice: Path, new_folder: Path, old_folder: Path, single: Path, tmp_path: Path
) -> None:
    out = tmp_path / "both"
    stopped = run_and_kill_worker(
        command(alice, new_folder, old_folder, out, "--gpus", "2", "--max-restarts", "0"), out
    )
    assert stopped.returncode == 1
    assert stopped.stderr.strip().splitlines()[-1].startswith("taskgraft: process ")
    assert "--resume" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    done = run_cli(*command(alice, new_folder, old_folder, out, "--resume"), check=True)
    assert "resuming at step" in done.stderr
    assert_close(out, single)


def test_bad_input_is_reported_once(alice: Path, old_folder: Path, tmp_path: Path) -> None:
    done = run_cli(*command(alice, tmp_path / "nothing", old_folder, tmp_path / "both", "--gpus", "2"))
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if line.startswith("taskgraft:")] == [
        f"taskgraft: {tmp_path / 'nothing'} does not exist; expected a folder with one sub-folder per class, or a table"
    ]
    assert not (tmp_path / "both").exists()
