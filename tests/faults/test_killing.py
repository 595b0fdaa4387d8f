"""kill -9 at random moments: a handful here; `make kills`, or TASKGRAFT_FAULTS=all, tries 200 of each."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from faults import killing

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="processes are forked")]
FEW = {"extend": 4, "tune": 2}


@pytest.mark.parametrize("name", FEW)
def test_random_kills_and_resume_are_bit_identical(
    name: str, alice: Path, new_folder: Path, old_folder: Path, tmp_path: Path
) -> None:
    count = 200 if os.environ.get("TASKGRAFT_FAULTS") == "all" else FEW[name]
    work = killing.works(alice, new_folder, old_folder / "val")[name]
    length = killing.calm(work, tmp_path / "calm")
    assert len(killing.marks(work, tmp_path / "calm")) > 6
    found = list(killing.kills(work, tmp_path / "calm", length, tmp_path, count, seed=1))
    assert len(found) == count
    assert not [kill for kill in found if kill.wrong]


def test_difference_is_detected(alice: Path, new_folder: Path, old_folder: Path, tmp_path: Path) -> None:
    work = killing.works(alice, new_folder, old_folder / "val")["extend"]
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text(name)
        (tmp_path / name / "report.html").touch()
    one, two = (killing.marks(work, tmp_path / name) for name in ("one", "two"))
    assert killing.unlike(one, two, tmp_path / "two") == ["model.safetensors"]
    assert killing.unlike(one, one, tmp_path / "one") == []
