"""Progress where there is no terminal."""

from __future__ import annotations

import pytest

from taskgraft.cli import console


def test_time_left_is_estimated_from_the_current_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    with console.show_progress() as callbacks:
        for seconds, last in ((20, 100), (20, 50), (40, 100)):  # a whole run, one that stopped half-way, a third
            for done in range(last + 1):
                now += seconds
                callbacks.progress("training", done, 100)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("training: 40 of 100, ")]
    assert [line.partition(", ")[2] for line in lines] == [
        "about 20.0 minutes left",
        "about 20.0 minutes left",
        "about 40.0 minutes left",
    ]
