"""Signals, poor surroundings and a closed pipe, on the real command line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from forks import run_cli, start_cli

pytestmark = pytest.mark.usefixtures("no_charts")
FLAGS = ["--steps", "20", "--batch-size", "8", "--head-steps", "4", "--eval-every", "10", "--save-every", "5"]
FLAGS += ["--precision", "fp32", "--cache", "none", "--method", "distill"]
MAIN = [sys.executable, "-m", "taskgraft.cli"]


def command(alice: Path, new: Path, old: Path, out: Path) -> list[str]:
    return ["extend", str(alice), str(new), str(out), "--task", "paint", "--old-val", str(old), *FLAGS]


@pytest.fixture(scope="module")
def expected(alice: Path, new_folder: Path, old_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undisturbed run, in a process with no home, no language and a narrow terminal."""
    out = tmp_path_factory.mktemp("expected") / "both"
    env = {"PATH": os.environ["PATH"], "LANG": "C", "TERM": "dumb", "COLUMNS": "20"}
    env |= {name: value for name, value in os.environ.items() if name.endswith("_NUM_THREADS")}  # another sum's order
    words = [*MAIN, *command(alice, new_folder, old_folder, out)]
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "model and report:" in done.stdout
    return out


@pytest.mark.parametrize(("number", "times", "code"), [("SIGINT", 1, 130), ("SIGINT", 2, 130), ("SIGTERM", 1, 143)])
def test_signal_loses_nothing(
    alice: Path, new_folder: Path, old_folder: Path, expected: Path, tmp_path: Path, number: str, times: int, code: int
) -> None:
    out = tmp_path / "both"
    words = command(alice, new_folder, old_folder, out)
    process = start_cli(*words)
    deadline = time.monotonic() + 100
    while not (out / "state" / "step-000000005").is_dir():
        assert process.is_running(), "it ended before step 5"
        assert time.monotonic() < deadline, "it hangs before step 5"
        time.sleep(0.002)
    for _ in range(times):
        process.send_signal(signal.Signals[number])
        time.sleep(0.02)
    done = process.wait()
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == "taskgraft: stopped; rerun with --resume to continue"
    run_cli(*words, "--resume", check=True)
    for name in ("model.safetensors", "metrics.jsonl"):
        assert (out / name).read_bytes() == (expected / name).read_bytes(), name


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_signal_at_exit_prints_nothing(name: str) -> None:
    code = f"""
import atexit, os, signal, sys
from taskgraft.cli.app import main
atexit.register(lambda: os.kill(os.getpid(), signal.{name}))
sys.argv = ["taskgraft", "extend", "nothing", "nothing", "nothing", "--task", "paint"]
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.Signals[name]
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("taskgraft: ")


def test_closed_pipe_is_no_error(expected: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    words = [*MAIN, "predict", str(expected), str(expected.parents[1])]
    done = subprocess.run(words, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert "Traceback" not in done.stderr
    assert "Error" not in done.stderr
