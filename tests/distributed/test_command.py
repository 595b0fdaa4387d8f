"""`extend --gpus 2`: a process is killed; the run goes on by itself, or later with another number of processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from taskgraft import TrainingConfig, extend

RUN = TrainingConfig(
    steps=60, batch_size=8, head_steps=10, eval_every=20, save_every=10, precision="fp32", optimizer="sgd", lr=0.01
)
FLAGS = ["--steps", "60", "--batch-size", "8", "--head-steps", "10", "--eval-every", "20", "--save-every", "10"]
FLAGS += ["--precision", "fp32", "--optimizer", "sgd", "--lr", "0.01", "--cache", "none"]


@pytest.fixture(scope="module")
def alone(alice: Path, old_folder: Path, new_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "both"
    extend(alice, new_folder, out, task="paint", method="distill", config=RUN, old_val=[old_folder])
    return out


def words(alice: Path, new: Path, old: Path, out: Path, *more: str) -> list[str]:
    asked = ["extend", str(alice), str(new), str(out), "--task", "paint", "--old-val", str(old), "--method", "distill"]
    return [sys.executable, "-m", "taskgraft.cli", *asked, *FLAGS, *more]


def killed(command: list[str], out: Path) -> subprocess.CompletedProcess[str]:
    """Run a command and kill one of its two workers as soon as the checkpoint of step 30 is there."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        end = time.monotonic() + 120
        while not (out / "state" / "step-000000030").is_dir():
            assert process.poll() is None, "it ended before step 30"
            assert time.monotonic() < end, "it hangs before step 30"
            time.sleep(0.005)
        os.kill(workers_of(process.pid)[-1], signal.SIGKILL)
        said, told = process.communicate(timeout=120)
    return subprocess.CompletedProcess(command, process.returncode, said, told)


def workers_of(launcher: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(launcher)], capture_output=True, text=True, check=False).stdout.split()
    return sorted(int(number) for number in found)


def assert_close(out: Path, alone: Path) -> None:
    found, expected = load_file(out / "model.safetensors"), load_file(alone / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        distance = (found[name].double() - value.double()).norm() / value.double().norm().clamp(min=1e-9)
        assert distance < 1e-4, f"{name}: {distance:.1e}"  # 60 steps, and the sums' order differs: measured 1e-6


def test_killed_process_is_restarted(
    alice: Path, new_folder: Path, old_folder: Path, alone: Path, tmp_path: Path
) -> None:
    out = tmp_path / "both"
    done = killed(words(alice, new_folder, old_folder, out, "--gpus", "2", "--max-restarts", "1"), out)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "resuming at step" in done.stderr
    assert done.stdout.count("model and report:") == 1
    assert_close(out, alone)


@pytest.mark.skipif(torch.cuda.device_count() > 0, reason="on GPUs a refusal of too many is another one")
def test_resume_with_another_world_size(
    alice: Path, new_folder: Path, old_folder: Path, alone: Path, tmp_path: Path
) -> None:
    out = tmp_path / "both"
    stopped = killed(words(alice, new_folder, old_folder, out, "--gpus", "2", "--max-restarts", "0"), out)
    assert stopped.returncode == 1
    assert stopped.stderr.strip().splitlines()[-1].startswith("taskgraft: process ")
    assert "--resume" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    command = words(alice, new_folder, old_folder, out, "--resume")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "resuming at step" in done.stderr
    assert_close(out, alone)


def test_bad_input_is_reported_once(alice: Path, old_folder: Path, tmp_path: Path) -> None:
    command = words(alice, tmp_path / "nothing", old_folder, tmp_path / "both", "--gpus", "2")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if line.startswith("taskgraft:")] == [
        f"taskgraft: {tmp_path / 'nothing'} does not exist; expected a folder with one sub-folder per class, or a table"
    ]
    assert not (tmp_path / "both").exists()
