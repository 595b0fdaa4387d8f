"""A source tree that was copied and not installed: `importlib.metadata` knows nothing of taskgraft there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import taskgraft

HIDE_METADATA = """
import importlib.metadata
original = importlib.metadata.distribution
def distribution(name):
    if name == "taskgraft":
        raise importlib.metadata.PackageNotFoundError(name)
    return original(name)
importlib.metadata.distribution = distribution
"""
RUN_COMMANDS = """
import json, sys
from taskgraft.cli import main
for words in json.loads(sys.argv[1]):
    sys.argv = ["taskgraft", *words]
    try:
        main()
    except SystemExit as end:
        assert not end.code
"""
FLAGS = [
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
]


def run(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", HIDE_METADATA + code, *args]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def test_metadata_is_hidden() -> None:
    done = run("importlib.metadata.version('taskgraft')")
    assert "PackageNotFoundError: No package metadata was found for taskgraft" in done.stderr


def test_commands_work(tmp_path: Path, alice: Path, new_folder: Path) -> None:
    out = tmp_path / "out"
    commands = [
        ["--version"],
        ["doctor", "--json"],
        ["extend", str(alice), str(new_folder), str(out), *FLAGS],
        ["export", str(out), str(tmp_path / "timm"), "--format", "safetensors"],
    ]
    done = run(RUN_COMMANDS, json.dumps(commands))
    assert done.returncode == 0, done.stderr
    version, rest = done.stdout.split("\n", 1)
    assert version == f"taskgraft {taskgraft.__version__}"
    result, _ = json.JSONDecoder().raw_decode(rest)
    assert not result["failed"]
    assert {"torch", "numpy", "timm", "Python"} <= {finding["name"] for finding in result["findings"]}
    assert json.loads((out / "record.json").read_text())["versions"]["taskgraft"] == taskgraft.__version__
    assert (out / "report.html").exists()
    assert (tmp_path / "timm").exists()
