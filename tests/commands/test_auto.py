"""`extend --method auto`: a search over methods and learning rates whose selected model is an ordinary child."""

from __future__ import annotations

from pathlib import Path

import pytest

import taskgraft
from taskgraft import InputError, TrainingConfig
from taskgraft.commands import auto as command
from taskgraft.methods.presets import AUTO_PORTFOLIO
from taskgraft.pipeline.request import Request

pytestmark = pytest.mark.usefixtures("no_charts")

CONFIG = TrainingConfig(steps=4, batch_size=8, head_steps=5, eval_every=2, save_every=2, views=1, precision="fp32")


@pytest.fixture
def request_(alice: Path, new_folder: Path, old_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Request:
    monkeypatch.setattr(command, "AUTO_LRS", (0.001,))
    return Request(str(alice), new_folder, "paint", config=CONFIG, old_val=(old_folder / "val",))


@pytest.mark.slow
def test_the_best_of_the_portfolio_is_written_to_out(request_: Request, tmp_path: Path) -> None:
    out = tmp_path / "both"
    extension = command.auto(request_, out)
    assert extension.record.method.split("(")[0].split(" ")[0] in {
        m.split("(")[0].split(" ")[0] for m in AUTO_PORTFOLIO
    }
    assert [task.name for task in taskgraft.open_parent(str(out)).classifier.tasks] == ["shape", "paint"]
    for name in ("record.json", "report.html", "search/report.html", "predictions.npz"):
        assert (out / name).is_file(), name
    before = (out / "record.json").read_bytes()
    assert command.auto(request_, out).record == extension.record
    assert (out / "record.json").read_bytes() == before


@pytest.mark.slow
def test_forgetting_is_limited(request_: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "AUTO_PORTFOLIO", AUTO_PORTFOLIO[:2])
    old, _ = command.auto(request_, tmp_path / "both", max_forgetting="0%").record.tasks
    assert old.forgetting
    assert old.forgetting.mean <= 0.0


def test_other_files_in_out_are_left_alone(request_: Request, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(InputError, match="already holds other files"):
        command.auto(request_, tmp_path)
