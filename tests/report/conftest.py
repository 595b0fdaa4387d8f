"""A run with errors and forgetting to show."""

from __future__ import annotations

from pathlib import Path

import pytest

from fake_results import fake_comparison, fake_distribution, fake_record, fake_search, fake_sets
from taskgraft import report
from taskgraft.commands.extend import extend
from taskgraft.config import TrainingConfig


@pytest.fixture(scope="session")
def forgetful(tmp_path_factory: pytest.TempPathFactory, alice: Path, old_folder: Path, new_folder: Path) -> Path:
    """An extension at a learning rate that ruins the old task, so that both tasks have errors."""
    config = TrainingConfig(
        steps=8, batch_size=8, lr=0.2, optimizer="sgd", head_steps=0, eval_every=8, log_every=2, precision="fp32"
    )
    out = tmp_path_factory.mktemp("forgetful") / "bundle"
    extend(alice, new_folder, out, task="paint", method="distill", config=config, old_val=[old_folder / "val"])
    return out


@pytest.fixture(scope="session")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a synthetic comparison: page and figures."""
    out = tmp_path_factory.mktemp("compared")
    report.write_comparison_report(fake_comparison(), out)
    return out


@pytest.fixture(scope="session")
def pages(compared: Path) -> dict[str, str]:
    """Pages of synthetic results."""
    return {
        "run": report.render_run(fake_record(), fake_sets()),
        "blind": report.render_run(fake_record(with_old=False), fake_sets(with_old=False)),
        "comparison": (compared / "report.html").read_text(encoding="utf-8"),
        "search": report.render_search(fake_search()),
        "distribution": report.render_distribution(fake_distribution()),
    }
