"""`extend --dry-run`: what an extension would do, without a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from forks import run_cli
from taskgraft.config import COMPRESSION_DEFAULTS

FEW = ("--steps", "4", "--batch-size", "8", "--head-steps", "0", "--precision", "fp32")


def test_one_backbone_is_described_as_two_runs(alice: Path, new_folder: Path, old_folder: Path, tmp_path: Path) -> None:
    command = ["extend", alice, new_folder, "both", "--task", "paint", "--old-val", old_folder / "val", *FEW]
    output = run_cli(*map(str, command), "--dry-run", "--one-backbone", cwd=tmp_path, check=True).stdout
    first, then = output.split("then its child teaches one plain backbone:")
    assert first.startswith("first, the extension:\nmethod: branch\n")
    assert "both/teacher: would be created" in first
    assert then.lstrip().startswith("method: distill(strength=12, teacher=live, loss=logits, blend=0.5)\n")
    assert "both: would be created" in then
    for run in (first, then):
        assert "steps = 4" in run
        assert "time: about" in run
    assert f"lr = {COMPRESSION_DEFAULTS.lr}" in then
    assert "0 frozen; the parent has" in then, "the student is one plain backbone"
    assert output.endswith("nothing was written\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("more", [["--dry-run"], []])
def test_a_method_without_a_side_network_needs_no_compression(
    more: list[str], alice: Path, new_folder: Path, tmp_path: Path
) -> None:
    command = ["extend", alice, new_folder, "both", "--task", "paint", "--method", "distill", "--one-backbone", *more]
    output = run_cli(*map(str, command), cwd=tmp_path)
    assert output.returncode == 2
    assert "--one-backbone: distill adds no side network, its child is plain; leave it out" in output.stderr
    assert not list(tmp_path.iterdir())
