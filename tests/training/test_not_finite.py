"""A step whose loss is not finite: nothing is updated, whether the host waits for the device or not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from taskgraft.errors import TrainingError
from taskgraft.training import loop
from toys import RUN, digest, start_run, weights

METHODS = ["finetune", "l2sp(strength=3.0)", "l2sp(strength=3.0) + ewc(images=16)", "distill"]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("method", METHODS)
def test_not_waiting_changes_no_bit(method: str, optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(RUN, optimizer=optimizer, lr=0.003)
    ends = []
    for waits in (True, False):
        monkeypatch.setattr(loop, "_must_wait", lambda device, method, waits=waits: waits)
        state, built, sources = start_run(method, config)
        ends.append(digest(weights(loop.fit(state, built, sources, config))))
    assert ends[0] == ends[1]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("waits", [True, False])
def test_a_bad_step_updates_nothing(method: str, waits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_must_wait", lambda device, method: waits)
    state, built, sources = start_run(method)
    state, _ = loop.train_step(state, built, sources, RUN)
    before = {name: value.clone() for name, value in state.classifier.named_parameters()}
    pixels = sources.new.pixels.float()
    bad = sources._replace(new=sources.new._replace(pixels=torch.full_like(pixels, float("inf")).permute(0, 3, 1, 2)))

    def two_steps() -> None:
        after, _ = loop.train_step(state, built, bad, RUN)
        loop.train_step(after, built, bad, RUN)

    with pytest.raises(TrainingError, match=r"step 2: the .* is not finite at learning rate .*not updated"):
        two_steps()
    assert all(torch.equal(value, before[name]) for name, value in state.classifier.named_parameters())


def test_a_bad_last_step_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_must_wait", lambda device, method: False)
    state, built, sources = start_run("finetune", replace(RUN, steps=1))
    bad = torch.full((len(sources.new.pixels), 3, 32, 32), float("nan"))
    sources = sources._replace(new=sources.new._replace(pixels=bad))
    with pytest.raises(TrainingError, match="step 1: the loss or gradient is not finite"):
        loop.fit(state, built, sources, replace(RUN, steps=1))
