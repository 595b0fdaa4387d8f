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


def test_tables_are_colored_on_a_terminal_and_plain_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = (["Configuration", "Score (%)"], [["[b]ewc", "80.1"], ["finetune", "70.0"]], 0)
    console.print_table(*table, plain="| Configuration |", below=["± is …"])
    assert capsys.readouterr().out == "| Configuration |\n"
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    console.print_table(*table, plain="| Configuration |", below=["± is …"])
    text = capsys.readouterr().out
    assert "\x1b[1;32m[b]ewc" in text, "the best row stands out, and a label is no markup"
    assert "finetune" in text
    assert text.endswith("± is …\n")


def test_progress_says_how_training_goes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    with console.show_progress() as callbacks:
        callbacks.progress("training", 1, 100)
        callbacks.status("lr 0.001  150 images/s  paint 81.2%")
        now = 20.0
        callbacks.progress("training", 50, 100)
    assert capsys.readouterr().err.endswith("left (lr 0.001  150 images/s  paint 81.2%)\n")


def test_the_bar_says_how_training_goes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "160")
    with console.show_progress() as callbacks:
        callbacks.progress("training", 1, 100)
        callbacks.status("lr 0.001  150 images/s  paint 81.2%")
        callbacks.progress("training", 50, 100)
    text = capsys.readouterr().err
    assert "training" in text
    assert "lr 0.001  150 images/s  paint 81.2%" in text
