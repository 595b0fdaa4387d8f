"""A run whose page has something to show."""

from __future__ import annotations

from pathlib import Path

import pytest

from taskgraft.config import TrainingConfig
from taskgraft.pipeline.extend import extend


@pytest.fixture(scope="session")
def forgetful(tmp_path_factory: pytest.TempPathFactory, alice: Path, old_folder: Path, new_folder: Path) -> Path:
    """An extension at a rate that ruins the old task, so that images of both tasks are answered wrongly."""
    config = TrainingConfig(
        steps=8, batch_size=8, lr=0.2, optimizer="sgd", head_steps=0, eval_every=8, log_every=2, precision="fp32"
    )
    out = tmp_path_factory.mktemp("forgetful") / "bundle"
    extend(alice, new_folder, out, task="paint", method="distill", config=config, old_val=[old_folder / "val"])
    return out
