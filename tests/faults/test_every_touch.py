"""Killed, or out of disk space, whenever a run touches its folder: nothing is lost, and it goes on to equal bits.

A spread of moments is tried; TASKGRAFT_FAULTS=all tries every one.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dying
from taskgraft import TrainingConfig, extend

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="processes are forked")]
RUN = TrainingConfig(steps=6, batch_size=8, head_steps=4, eval_every=3, save_every=2, log_every=3, precision="fp32")
FILES = ("model.safetensors", "memory.safetensors", "metrics.jsonl", "split.csv")
SPREAD = 9  # moments of a run that are tried


@pytest.fixture(scope="module")
def work(alice: Path, new_folder: Path, old_folder: Path) -> Callable[..., Any]:
    def carry_out(out: Path, *, resume: bool = False) -> Any:
        method = "distill + ewc(images=8)"
        return extend(
            alice, new_folder, out, task="paint", method=method, config=RUN, old_val=[old_folder], resume=resume
        )

    return carry_out


@pytest.fixture(scope="module")
def calm(work: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("calm") / "both"
    work(out)
    return out


@pytest.fixture(scope="module")
def moments(work: Callable[..., Any], calm: Path, tmp_path_factory: pytest.TempPathFactory) -> list[int]:
    out = tmp_path_factory.mktemp("counted") / "both"
    total = dying.touches(out, lambda: work(out))
    assert total > 60
    if os.environ.get("TASKGRAFT_FAULTS") == "all":
        return list(range(1, total + 1))
    return sorted({1 + number * (total - 1) // (SPREAD - 1) for number in range(SPREAD)})


def goes_on(work: Callable[..., Any], out: Path, calm: Path, moment: int) -> None:
    work(out, resume=True)
    for name in FILES:
        assert (out / name).read_bytes() == (calm / name).read_bytes(), f"moment {moment}: {name}"
    assert (out / "report.html").exists(), f"moment {moment}: no report"
    left = [path.name for path in out.rglob(".*") if path.name not in (".lock", ".holder")]
    assert not left, f"moment {moment}: {left}"


def test_killed_at_every_write(work: Callable[..., Any], calm: Path, moments: list[int], tmp_path: Path) -> None:
    for moment in moments:
        out = tmp_path / str(moment)
        code, said = dying.disturbed(out, moment, "killed", lambda out=out: work(out))
        assert code == dying.KILLED, said
        goes_on(work, out, calm, moment)


def test_disk_full_at_every_write(work: Callable[..., Any], calm: Path, moments: list[int], tmp_path: Path) -> None:
    for moment in moments:
        out = tmp_path / str(moment)
        code, said = dying.disturbed(out, moment, "full", lambda out=out: work(out))
        if code:
            assert said.startswith(("InputError: ", "SetupError: ")), f"moment {moment}: {said}"
            assert "No space left" in said
            assert "with --resume" in said or "choose another OUT" in said
        else:
            assert json.loads((out / "run.json").read_text())["done"], f"moment {moment}: it only seems to be done"
        goes_on(work, out, calm, moment)
