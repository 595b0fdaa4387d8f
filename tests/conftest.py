"""Fixtures that several folders share: a trained toy parent, a folder of toy images."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from opened_files import OpenedFiles, opened_below
from taskgraft.commands.extend import extend
from taskgraft.commands.train import train
from taskgraft.config import TrainingConfig
from taskgraft.report import charts
from toys import NEW, OLD, write_folder

# What trains, serves, draws charts or starts programs: `make test-fast` leaves it out, beside the tests that carry a
# marker, and keeps one extension from end to end.
SLOW = (
    "acceptance", "bad_inputs", "commands", "distributed", "docs", "exports", "faults", "fuzz", "laws",
    "models/test_tensor_cache", "pipeline", "real", "recipes", "reference", "report/test_charts",
    "report/test_comparison_summary", "report/test_pages", "serving", "surface/test_bench", "surface/test_examples",
    "surface/test_not_installed", "surface/test_strings", "surface/test_supply",
)  # fmt: skip
FAST = "pipeline/test_extend.py::test_extend_writes_bundle_and_evidence"
TESTS = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the slow groups."""
    for item in items:
        if item.path.is_relative_to(TESTS):
            name = f"{item.path.relative_to(TESTS).as_posix()}::{item.name}"
            if name.startswith(SLOW) and name != FAST:
                item.add_marker("slow")


torch.set_num_threads(1)  # two test processes share two cores
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the programs that tests start: their last bits depend on it
# A shell starts its background jobs deaf to SIGINT, and so would be the programs that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def without_charts() -> Iterator[None]:
    """Reports without their charts, which take most of the time of a tiny run, where nobody looks at them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(charts, "render_svg", lambda *args: "<svg></svg>")
        yield


@pytest.fixture(scope="module")
def no_charts() -> Iterator[None]:
    with without_charts():
        yield


@pytest.fixture
def opened_files() -> OpenedFiles:
    """`with openings(folder) as read:` collects the files below a folder that are opened."""
    return opened_below


@pytest.fixture(scope="session")
def old_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shapes")
    write_folder(root / "train", OLD, 36, 1)
    write_folder(root / "val", OLD, 24, 2)
    return root


@pytest.fixture(scope="session")
def new_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("paints")
    write_folder(root / "train", NEW, 40, 3)
    write_folder(root / "val", NEW, 24, 4)
    return root


@pytest.fixture(scope="session")
def alice(tmp_path_factory: pytest.TempPathFactory, old_folder: Path) -> Path:
    """A bundle with one task, trained by taskgraft."""
    config = TrainingConfig(steps=30, batch_size=12, lr=0.05, head_steps=0, eval_every=10, precision="fp32")
    out = tmp_path_factory.mktemp("alice") / "bundle"
    with without_charts():
        train(
            old_folder, out, task="shape", model="test_resnet", preprocessing="32 squash bilinear half", config=config
        )
    return out


SHORT = TrainingConfig(steps=20, batch_size=8, head_steps=20, eval_every=20, precision="fp32")


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory, alice: Path, old_folder: Path, new_folder: Path) -> Path:
    """A child of one backbone with the tasks shape and paint."""
    out = tmp_path_factory.mktemp("plain") / "bundle"
    with without_charts():
        extend(alice, new_folder, out, task="paint", method="finetune", config=SHORT, old_val=[old_folder / "val"])
    return out


@pytest.fixture(scope="session")
def branched(tmp_path_factory: pytest.TempPathFactory, alice: Path, old_folder: Path, new_folder: Path) -> Path:
    """A child with a branch beside the backbone; the same tasks."""
    out = tmp_path_factory.mktemp("branched") / "bundle"
    with without_charts():
        extend(alice, new_folder, out, task="paint", method="branch", config=SHORT, old_val=[old_folder / "val"])
    return out
