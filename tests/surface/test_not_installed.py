"""A source tree that was copied and not installed: `importlib.metadata` knows nothing of taskgraft there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import taskgraft

STRANGER = """
import importlib.metadata, sys
known = importlib.metadata.distribution
def distribution(name):
    if name == "taskgraft":
        raise importlib.metadata.PackageNotFoundError(name)
    return known(name)
importlib.metadata.distribution = distribution
from taskgraft.cli import main
main()
"""


def told(*words: str | Path) -> str:
    command = [sys.executable, "-c", STRANGER, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_stranger_is_one() -> None:
    code = STRANGER.replace("from taskgraft.cli import main\nmain()", "importlib.metadata.version('taskgraft')")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "PackageNotFoundError: No package metadata was found for taskgraft" in done.stderr


def test_it_tells_its_version_and_what_it_requires() -> None:
    assert told("--version") == f"taskgraft {taskgraft.__version__}\n"
    found = json.loads(told("doctor", "--json"))
    assert not found["failed"]
    assert {"torch", "numpy", "timm", "Python"} <= {one["name"] for one in found["findings"]}


def test_it_extends_and_exports(tmp_path: Path, alice: Path, new_folder: Path) -> None:
    out = tmp_path / "out"
    told(
        "extend",
        alice,
        new_folder,
        out,
        "--task",
        "paint",
        "--method",
        "finetune",
        "--steps",
        "2",
        "--batch-size",
        "8",
        "--head-steps",
        "5",
        "--precision",
        "fp32",
        "--cache",
        "none",
    )
    assert json.loads((out / "record.json").read_text())["versions"]["taskgraft"] == taskgraft.__version__
    told("export", out, tmp_path / "timm", "--format", "safetensors")
    assert (out / "report.html").exists()
