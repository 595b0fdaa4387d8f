"""`extend --method auto`: a search over methods and rates whose choice is an ordinary child."""

from __future__ import annotations

from pathlib import Path

import pytest

import taskgraft
from taskgraft import TaskgraftError, TrainingConfig
from taskgraft.commands import auto as job
from taskgraft.methods import presets
from taskgraft.pipeline.request import Request

RUN = TrainingConfig(steps=4, batch_size=8, head_steps=5, eval_every=2, save_every=2, views=1, precision="fp32")


@pytest.fixture
def asked(alice: Path, new_folder: Path, old_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Request:
    monkeypatch.setattr(job, "AUTO_LRS", (0.001,))
    return Request(str(alice), new_folder, "paint", config=RUN, old_val=(old_folder / "val",))


def test_the_best_of_the_portfolio_is_left_in_out(asked: Request, tmp_path: Path) -> None:
    out = tmp_path / "both"
    done = job.auto(asked, out)
    tried = {line.split("`")[1] for line in (out / "search" / "table.md").read_text().splitlines() if "`" in line}
    assert tried
    assert done.record.method.split("(")[0].split(" ")[0] in {
        name.split("(")[0].split(" ")[0] for name in presets.AUTO_PORTFOLIO
    }
    assert [task.name for task in taskgraft.open_parent(str(out)).classifier.tasks] == ["shape", "paint"]
    for name in ("record.json", "report.html", "search/report.html", "predictions.npz"):
        assert (out / name).is_file(), name
    before = (out / "record.json").read_bytes()
    assert job.auto(asked, out).record == done.record
    assert (out / "record.json").read_bytes() == before


def test_a_limit_on_forgetting_decides(asked: Request, tmp_path: Path) -> None:
    done = job.auto(asked, tmp_path / "both", max_forgetting="0%")
    (old, _) = done.record.tasks
    assert old.forgetting
    assert old.forgetting.mean <= 0.0


def test_other_files_in_out_are_left_alone(asked: Request, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(TaskgraftError, match="already holds other files"):
        job.auto(asked, tmp_path)
