"""`auto` becomes one fixed value, and stays it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from taskgraft import tree
from taskgraft.classifier import grow
from taskgraft.loop import precision
from taskgraft.settings import Precision
from toys import NEW, RUN, parent, same, sources

AUTO = replace(RUN, precision="auto", batch=4)


@pytest.mark.parametrize("asked", precision.CANDIDATES)
def test_what_is_asked_for_is_taken(asked: Precision, tmp_path: Path) -> None:
    run = replace(RUN, precision=asked)
    assert precision.choose(parent(), sources(), run, tmp_path) == (run, "as asked")
    assert not list(tmp_path.iterdir())


def test_auto_is_measured_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = grow(parent(), NEW, 0)
    before, draws = tree.state(child), torch.random.get_rng_state()
    run, reason = precision.choose(child, sources(), AUTO, tmp_path)
    assert run == replace(AUTO, precision=run.precision)
    assert run.precision in precision.CANDIDATES
    assert reason.startswith("measured here: fp32 ")
    assert reason.count("images/s") == 3
    assert same(tree.state(child), before)  # timing teaches nothing
    assert torch.equal(torch.random.get_rng_state(), draws)
    monkeypatch.setattr(precision, "_rates", lambda *_: pytest.fail("timed twice"))
    assert precision.choose(child, sources(), AUTO, tmp_path) == (run, reason)


def test_the_fastest_wins_by_a_margin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(**rates: float) -> str:
        found = {name.replace("_", "-"): rate for name, rate in rates.items()}
        monkeypatch.setattr(precision, "_rates", lambda *_: found)
        return precision.choose(parent(), sources(), AUTO, None)[0].precision

    assert chosen(fp32=100, fp32_channels_last=105, bf16=109) == "fp32"
    assert chosen(fp32=100, fp32_channels_last=120, bf16=125) == "fp32-channels-last"
    assert chosen(fp32=100, fp32_channels_last=120, bf16=140) == "bf16"


def test_another_batch_or_a_damaged_store_is_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    rates = {"fp32": 1.0, "fp32-channels-last": 1.0, "bf16": 1.0}
    monkeypatch.setattr(precision, "_rates", lambda *_: asked.append(1) or rates)
    for run in (AUTO, AUTO, replace(AUTO, batch=5)):
        precision.choose(parent(), sources(), run, tmp_path)
    assert len(asked) == 2
    assert len(json.loads((tmp_path / "precision.json").read_text())) == 2
    (tmp_path / "precision.json").write_text("{")
    precision.choose(parent(), sources(), AUTO, tmp_path)
    assert len(asked) == 3
