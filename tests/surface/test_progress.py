"""The lines that tell how far a run is, where there is no terminal."""

from __future__ import annotations

import pytest

from taskgraft.cli import console


def test_the_time_left_is_that_of_this_run_not_of_those_before(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: clock[0])
    with console.watching() as callbacks:
        for seconds, last in ((20, 100), (20, 50), (40, 100)):  # a whole run, one that stopped half-way, a third
            for done in range(last + 1):
                clock[0] += seconds
                callbacks.progress("training", done, 100)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("training: 40 of 100")]
    assert [line.split(", ")[1] for line in lines] == [
        "about 20.0 minutes left",
        "about 20.0 minutes left",
        "about 40.0 minutes left",
    ]
