"""`--device` and `--workers`: what computes and what decodes, or one line on why it cannot."""

from __future__ import annotations

import os

import pytest
import torch

from taskgraft import InputError, distributed
from taskgraft.data import decode


def test_the_cpu_can_be_chosen_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    with distributed.use_device("cpu"):
        assert distributed.device() == torch.device("cpu")
    with distributed.use_device("auto"):
        assert distributed.device() == torch.device("cuda", 0)


def test_one_of_several_gpus_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    with distributed.use_device("cuda:1"):
        assert distributed.device() == torch.device("cuda", 1)
    assert chosen == [torch.device("cuda", 1)], "kernels without a device of their own must run there, too"
    with pytest.raises(InputError, match="--device cuda:2: this machine has 2 GPU"), distributed.use_device("cuda:2"):
        pass


@pytest.mark.parametrize(
    ("name", "reason"), [("cuda", "finds no GPU"), ("mps", "no Apple GPU"), ("gpu", "give one of auto, cpu, cuda")]
)
def test_a_missing_device_is_refused(name: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(InputError, match=reason), distributed.use_device(name):
        pass


def test_as_many_threads_decode_as_were_asked_for() -> None:
    with decode.use_workers(3), decode.thread_pool() as pool:
        assert pool._max_workers == 3
    assert decode.count_workers() == os.cpu_count(), "outside it there is one for each core"
