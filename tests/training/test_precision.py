"""`auto` becomes one fixed value, and stays it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from taskgraft import pytree
from taskgraft.config import Precision
from taskgraft.models.classifier import grow
from taskgraft.training import precision
from toys import NEW, RUN, equal, make_data, parent

AUTO = replace(RUN, precision="auto", batch_size=4)


@pytest.mark.parametrize("asked", precision.CANDIDATES)
def test_explicit_precision_is_used(asked: Precision, tmp_path: Path) -> None:
    config = replace(RUN, precision=asked)
    assert precision.choose_precision(parent(), make_data(), config, tmp_path) == (config, "set explicitly")
    assert not list(tmp_path.iterdir())


def test_auto_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = grow(parent(), NEW, 0)
    before, draws = pytree.state(child), torch.random.get_rng_state()
    config, reason = precision.choose_precision(child, make_data(), AUTO, tmp_path)
    assert config == replace(AUTO, precision=config.precision)
    assert config.precision in precision.CANDIDATES
    assert reason.startswith("measured here: fp32 ")
    assert reason.count("images/s") == 2 + precision.computes_bf16(torch.device("cpu"))
    assert equal(pytree.state(child), before)  # timing teaches nothing
    assert torch.equal(torch.random.get_rng_state(), draws)
    monkeypatch.setattr(precision, "_benchmark", lambda *_: pytest.fail("timed twice"))
    assert precision.choose_precision(child, make_data(), AUTO, tmp_path) == (config, reason)


def test_fastest_wins_by_margin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(**lrs: float) -> str:
        result: Any = {name.replace("_", "-"): lr for name, lr in lrs.items()}
        monkeypatch.setattr(precision, "_benchmark", lambda *_: (result, {}))
        return precision.choose_precision(parent(), make_data(), AUTO, None)[0].precision

    assert chosen(fp32=100, fp32_channels_last=105, bf16=109) == "fp32"
    assert chosen(fp32=100, fp32_channels_last=120, bf16=125) == "fp32-channels-last"
    assert chosen(fp32=100, fp32_channels_last=120, bf16=140) == "bf16"


class Clock:
    """Turns that take what they are told to, and what they took."""

    def __init__(self, **seconds: list[float]) -> None:
        self.left = {name.replace("_", "-"): list(own) for name, own in seconds.items()}
        self.spent: dict[str, list[float]] = {name: [] for name in self.left}

    def turns(self) -> dict[Precision, Callable[[], float]]:
        return {name: lambda name=name: self.take(name) for name in self.left}  # pyright: ignore

    def take(self, name: str) -> float:
        own = self.left[name].pop(0) if len(self.left[name]) > 1 else self.left[name][0]
        self.spent[name].append(own)
        return own


def test_best_round_counts() -> None:
    clock = Clock(fp32=[0.2, 0.3, 0.2, 0.25], fp32_channels_last=[0.2, 0.3, 0.4, 0.35], bf16=[0.5, 0.2, 0.2, 0.15])
    assert precision.time_rounds(clock.turns()) == ({"fp32": 0.2, "fp32-channels-last": 0.3, "bf16": 0.15}, {})
    assert all(len(own) == precision.ROUNDS + 1 for own in clock.spent.values())


def test_slow_candidate_gets_one_round() -> None:
    """As bf16 does where it is emulated: 15 s, where fp32 takes 2."""
    clock = Clock(fp32=[2.0], fp32_channels_last=[1.8], bf16=[15.0])
    seconds, dropped = precision.time_rounds(clock.turns())
    assert clock.spent["bf16"] == [15.0]
    assert seconds == {"fp32": 2.0, "fp32-channels-last": 1.8, "bf16": 15.0}
    assert dropped == {"bf16": "dropped after a step of 15 s, where another took 1.8 s"}


def test_setup_in_first_round_drops_nobody() -> None:
    clock = Clock(fp32=[0.1], fp32_channels_last=[0.6, 0.05], bf16=[0.65, 0.04])
    seconds, dropped = precision.time_rounds(clock.turns())
    assert seconds["bf16"] == 0.04
    assert dropped == {"fp32": "dropped after a step of 0.1 s, where another took 0.04 s"}


def test_single_slow_round_drops_nobody() -> None:
    clock = Clock(fp32=[0.2], fp32_channels_last=[0.1, 0.9, 0.1], bf16=[0.2])
    seconds, dropped = precision.time_rounds(clock.turns())
    assert (seconds["fp32-channels-last"], dropped) == (0.1, {})


@pytest.mark.parametrize("step", [0.01, 0.4, 1.0, 3.0, 60.0])
def test_rounds_take_five_seconds_at_most(step: float) -> None:
    clock = Clock(fp32=[step], fp32_channels_last=[step], bf16=[step])
    precision.time_rounds(clock.turns())
    later = sum(sum(own[1:]) for own in clock.spent.values())
    assert later <= precision.MAX_SECONDS
    assert all(clock.spent.values())


def test_emulated_bf16_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "computes_bf16", lambda device: False)
    timed: list[str] = []
    monkeypatch.setattr(precision, "time_step", lambda model, batch, name, softmax: timed.append(name) or 0.1)
    config, reason = precision.choose_precision(grow(parent(), NEW, 0), make_data(), AUTO, None)
    assert set(timed) == {"fp32", "fp32-channels-last"}
    assert reason.endswith("; bf16 not tried: this device only emulates it")
    assert config.precision == "fp32"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="oneDNN's levels are those of x86-64")
def test_processor_without_bf16_units() -> None:
    """oneDNN can be told to take a processor for an older one."""
    code = "import torch; from taskgraft.training.precision import computes_bf16 as c; print(c(torch.device('cpu')))"
    told = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run([sys.executable, "-c", code], env=told, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_other_batch_size_or_damaged_file_is_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    lrs: dict[Precision, float] = {"fp32": 1.0, "fp32-channels-last": 1.0, "bf16": 1.0}
    monkeypatch.setattr(precision, "_benchmark", lambda *_: asked.append(1) or (lrs, {}))
    for config in (AUTO, AUTO, replace(AUTO, batch_size=5)):
        precision.choose_precision(parent(), make_data(), config, tmp_path)
    assert len(asked) == 2
    assert len(json.loads((tmp_path / "precision.json").read_text())) == 2
    (tmp_path / "precision.json").write_text("{")
    precision.choose_precision(parent(), make_data(), AUTO, tmp_path)
    assert len(asked) == 3
