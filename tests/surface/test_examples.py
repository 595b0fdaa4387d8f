"""Every command's help shows an example; each is run as it stands, on less data and fewer steps."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from taskgraft.commands.train import train
from taskgraft.config import TrainingConfig
from taskgraft.synthetic import write_cars
from typed import COMMANDS

LESS = shlex.split("--steps 2 --batch-size 4 --head-steps 2 --eval-every 1 --precision fp32 --cache none")
MORE = {
    "train": [*LESS, "--model", "test_resnet"],
    "extend": [*LESS, "--no-parent-check"],  # the parent below has hardly been trained
    "compare": [*LESS, "--seeds", "1", "--no-parent-check"],
    "tune": [*LESS, "--no-parent-check"],
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks as if `taskgraft demo` had been run in it."""
    home = tmp_path_factory.mktemp("home")
    data = home / "demo-run" / "data"
    makes = write_cars(data / "makes", label="make", train=4, val=2, seed=1, size=32, camera="street")
    write_cars(data / "paints", label="paint", train=4, val=2, seed=2, size=32, camera="factory")
    config = TrainingConfig(steps=2, batch_size=4, head_steps=0, precision="fp32")
    train(
        makes,
        home / "demo-run/alice",
        task="make",
        model="test_resnet",
        preprocessing="32 squash bilinear half",
        config=config,
    )
    return home


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - {"demo"}))  # `make demo` is the demo's example
def test_the_example_runs(name: str, home: Path) -> None:
    words = shlex.split(str(COMMANDS[name].help_epilogue).removeprefix("Example: taskgraft "))
    done = subprocess.run(
        [sys.executable, "-m", "taskgraft.cli", *words, *MORE.get(name, [])],
        cwd=home, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
