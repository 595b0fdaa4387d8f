"""kill -9 at random moments: a handful here; `make kills`, or TASKGRAFT_FAULTS=all, tries 200 of each."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from faults import killing

pytestmark = [
    pytest.mark.usefixtures("no_charts"),
    pytest.mark.skipif(sys.platform == "win32", reason="processes are forked"),
]
COUNTS = {"extend": 2, "tune": 1}


@pytest.mark.parametrize("name", COUNTS)
def test_random_kills_and_resume_are_bit_identical(
    name: str, alice: Path, new_folder: Path, old_folder: Path, tmp_path: Path
) -> None:
    count = 200 if os.environ.get("TASKGRAFT_FAULTS") == "all" else COUNTS[name]
    work = killing.resumable_commands(alice, new_folder, old_folder / "val")[name]
    length = killing.run_undisturbed(work, tmp_path / "expected")
    assert len(killing.digests(work, tmp_path / "expected")) > 6
    kills = list(killing.kill_and_resume(work, tmp_path / "expected", length, tmp_path, count, seed=1))
    assert len(kills) == count
    assert not [kill for kill in kills if kill.error]


def test_difference_is_detected(alice: Path, new_folder: Path, old_folder: Path, tmp_path: Path) -> None:
    work = killing.resumable_commands(alice, new_folder, old_folder / "val")["extend"]
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text(name)
        (tmp_path / name / "report.html").touch()
    one, two = (killing.digests(work, tmp_path / name) for name in ("one", "two"))
    assert killing.differences_between(one, two, tmp_path / "two") == ["model.safetensors"]
    assert killing.differences_between(one, one, tmp_path / "one") == []
