"""Every command's help shows an example; each is run as it stands, on less data and fewer steps."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from cli_parsing import COMMANDS
from forks import run_cli
from taskgraft.commands.train import train
from taskgraft.config import TrainingConfig
from taskgraft.synthetic import write_cars

FEW = shlex.split("--steps 2 --batch-size 4 --head-steps 2 --eval-every 1 --precision fp32 --cache none")
FLAGS = {
    "train": [*FEW, "--model", "test_resnet"],
    "extend": [*FEW, "--no-parent-check"],  # the parent below has hardly been trained
    "refresh": [*FEW, "--no-parent-check"],
    "compress": [*FEW, "--no-parent-check"],
    "merge": [*FEW[:4], *FEW[6:], "--no-parent-check"],
    "compare": [*FEW, "--seeds", "1", "--no-parent-check"],
    "tune": [*FEW, "--no-parent-check"],
}


pytestmark = pytest.mark.usefixtures("no_charts")


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
    needed = {"compress": ["extend"], "merge": ["extend", "compress"]}  # what earlier examples write
    for other in needed.get(name, ()):
        run_example(other, home)
    assert run_example(name, home).strip()


def run_example(name: str, home: Path) -> str:
    words = shlex.split(str(COMMANDS[name].help_epilogue).removeprefix("Example: taskgraft "))
    return run_cli(*words, *FLAGS.get(name, []), cwd=home, check=True).stdout
