"""Killed, or out of disk space, at any write to the run's folder: nothing is lost, and --resume gives equal bits.

A spread of writes is tried; TASKGRAFT_FAULTS=all tries every one.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from faults import injection
from taskgraft import TrainingConfig, extend

pytestmark = [
    pytest.mark.usefixtures("no_charts"),
    pytest.mark.skipif(sys.platform == "win32", reason="processes are forked"),
]
CONFIG = TrainingConfig(steps=6, batch_size=8, head_steps=4, eval_every=3, save_every=2, log_every=3, precision="fp32")
COMPARED = ("model.safetensors", "memory.safetensors", "metrics.jsonl", "split.csv")
TRIED = 7  # writes of a run


@pytest.fixture(scope="module")
def run(alice: Path, new_folder: Path, old_folder: Path) -> Callable[..., Any]:
    def extend_to(out: Path, *, resume: bool = False) -> Any:
        method, old_val = "distill + ewc(images=8)", [old_folder]
        return extend(
            alice, new_folder, out, task="paint", method=method, config=CONFIG, old_val=old_val, resume=resume
        )

    return extend_to


@pytest.fixture(scope="module")
def expected(run: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("expected") / "both"
    run(out)
    return out


@pytest.fixture(scope="module")
def writes(run: Callable[..., Any], expected: Path, tmp_path_factory: pytest.TempPathFactory) -> list[int]:
    """The numbers of the writes at which something happens."""
    out = tmp_path_factory.mktemp("counted") / "both"
    total = injection.count_writes(out, lambda: run(out))
    assert total > 60
    if os.environ.get("TASKGRAFT_FAULTS") == "all":
        return list(range(1, total + 1))
    return sorted({1 + number * (total - 1) // (TRIED - 1) for number in range(TRIED)})


def assert_resumes(run: Callable[..., Any], out: Path, expected: Path, write: int) -> None:
    run(out, resume=True)
    for name in COMPARED:
        assert (out / name).read_bytes() == (expected / name).read_bytes(), f"write {write}: {name}"
    assert (out / "report.html").exists(), f"write {write}: no report"
    leftovers = [path.name for path in out.rglob(".*") if path.name not in (".lock", ".holder")]
    assert not leftovers, f"write {write}: {leftovers}"


def test_killed_at_every_write(run: Callable[..., Any], expected: Path, writes: list[int], tmp_path: Path) -> None:
    for write in writes:
        out = tmp_path / str(write)
        code, message = injection.run_with_fault(out, write, "killed", lambda out=out: run(out))
        assert code == injection.KILLED, message
        assert_resumes(run, out, expected, write)


def test_disk_full_at_every_write(run: Callable[..., Any], expected: Path, writes: list[int], tmp_path: Path) -> None:
    for write in writes:
        out = tmp_path / str(write)
        code, message = injection.run_with_fault(out, write, "full", lambda out=out: run(out))
        if code:
            assert message.startswith(("InputError: ", "SetupError: ")), f"write {write}: {message}"
            assert "No space left" in message
            assert "with --resume" in message or "choose another OUT" in message
        else:
            assert json.loads((out / "run.json").read_text())["done"], f"write {write}: it ended early with exit code 0"
        assert_resumes(run, out, expected, write)
