"""Signals, poor surroundings and a reader that goes away, on the real program."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
FLAGS = ["--steps", "40", "--batch-size", "8", "--head-steps", "10", "--eval-every", "10", "--save-every", "5"]
FLAGS += ["--precision", "fp32", "--cache", "none", "--method", "distill"]


def words(alice: Path, new: Path, old: Path, out: Path, *more: str) -> list[str]:
    asked = ["extend", str(alice), str(new), str(out), "--task", "paint", "--old-val", str(old)]
    return [sys.executable, "-m", "taskgraft.cli", *asked, *FLAGS, *more]


@pytest.fixture(scope="module")
def calm(alice: Path, new_folder: Path, old_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undisturbed run, in the poorest of surroundings: no home, no language, a narrow terminal."""
    out = tmp_path_factory.mktemp("calm") / "both"
    bare = {"PATH": os.environ["PATH"], "LANG": "C", "TERM": "dumb", "COLUMNS": "20"}
    bare |= {name: value for name, value in os.environ.items() if name.endswith("_NUM_THREADS")}  # another sum's order
    done = subprocess.run(
        words(alice, new_folder, old_folder, out), env=bare, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "model and report:" in done.stdout
    return out


@pytest.mark.parametrize(("number", "times", "code"), [("SIGINT", 1, 130), ("SIGINT", 2, 130), ("SIGTERM", 1, 143)])
def test_signal_loses_nothing(
    alice: Path, new_folder: Path, old_folder: Path, calm: Path, tmp_path: Path, number: str, times: int, code: int
) -> None:
    out = tmp_path / "both"
    command = words(alice, new_folder, old_folder, out)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        end = time.monotonic() + 100
        while not (out / "state" / "step-000000010").is_dir():
            assert process.poll() is None, "it ended before step 10"
            assert time.monotonic() < end, "it hangs before step 10"
            time.sleep(0.002)
        for _ in range(times):
            process.send_signal(signal.Signals[number])
            time.sleep(0.02)
        _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert "Traceback" not in said
    assert said.splitlines()[-1] == "taskgraft: stopped; rerun with --resume to continue"
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in ("model.safetensors", "metrics.jsonl"):
        assert (out / name).read_bytes() == (calm / name).read_bytes(), name


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_signal_at_exit_prints_nothing(name: str) -> None:
    late = f"""
import atexit, os, signal, sys
from taskgraft.cli.app import main
atexit.register(lambda: os.kill(os.getpid(), signal.{name}))
sys.argv = ["taskgraft", "extend", "nothing", "nothing", "nothing", "--task", "paint"]
main()
"""
    done = subprocess.run([sys.executable, "-c", late], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.Signals[name]
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("taskgraft: ")


def test_closed_pipe_is_no_error(calm: Path) -> None:
    command = [sys.executable, "-m", "taskgraft.cli", "predict", str(calm), str(calm.parents[1])]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert "Traceback" not in done.stderr
    assert "Error" not in done.stderr
