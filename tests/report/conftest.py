"""A run whose page has something to show."""

from __future__ import annotations

from pathlib import Path

import pytest

from taskgraft.jobs.extend import extend
from taskgraft.settings import Run


@pytest.fixture(scope="session")
def forgetful(tmp_path_factory: pytest.TempPathFactory, alice: Path, old_pictures: Path, new_pictures: Path) -> Path:
    """An extension at a rate that ruins the old task, so that pictures of both tasks are answered wrongly."""
    run = Run(steps=8, batch=8, rate=0.2, optimiser="sgd", warmup=0, eval_every=8, log_every=2, precision="fp32")
    out = tmp_path_factory.mktemp("forgetful") / "bundle"
    extend(alice, new_pictures, out, task="paint", method="distill", run=run, old_val=[old_pictures / "val"])
    return out
