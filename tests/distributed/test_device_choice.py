"""`--device` and `--workers`: what computes and what decodes, or one line on why it cannot."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from cli_parsing import COMMANDS, flags_of
from taskgraft import InputError, distributed
from taskgraft.cli import main
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


WORDS = {  # a command line up to its flags; nothing that it names is opened before the device is
    "train": "x y", "extend": "x y z --task t", "compress": "x y z", "merge": "x y z --images i", "refresh": "x y z",
    "compare": "x y z --task t", "tune": "x y z --task t", "demo": "x", "predict": "x y", "distribution": "x y",
    "evaluate": "x y", "calibrate": "x y", "serve": "x",
}  # fmt: skip
DECODING = {*WORDS, "check", "export"}  # those of serve are processes


def test_every_command_that_computes_or_decodes_says_where() -> None:
    assert {name for name in COMMANDS if "--device" in flags_of(name)} == set(WORDS)
    assert {name for name in COMMANDS if "--workers" in flags_of(name)} == DECODING


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """The exit code of a command."""
    monkeypatch.setattr(sys, "argv", ["taskgraft", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        main()
    assert isinstance(end.value.code, int)
    return end.value.code


@pytest.mark.parametrize("name", WORDS)
def test_a_command_on_a_missing_device_is_refused(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, name, *WORDS[name].split(), "--device", "tpu") == 2
    assert capsys.readouterr().err == (
        "taskgraft: --device 'tpu': give one of auto, cpu, cuda, cuda:N (such as cuda:1), mps\n"
    )


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("tune x y z --task t --device cpu --jobs 2", "--device and --jobs: workers choose a device for themselves"),
        ("tune x y z --task t --device cpu --ray local", "--device and --ray: workers choose a device for themselves"),
        ("predict x y --out o.csv --device cpu --ray local", "--device and --ray: workers choose a device"),
        ("serve x --device mps --backend onnx", "--device mps: --backend onnx computes on the CPU"),
    ],
)
def test_a_device_for_what_runs_elsewhere_is_refused(
    words: str, reason: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, *words.split()) == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize("name", ["predict", "distribution", "evaluate", "check"])
def test_a_command_decodes_with_the_threads_that_it_was_given(
    name: str, alice: Path, old_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []

    class Pool(ThreadPoolExecutor):
        def __init__(self, count: int) -> None:
            threads.append(count)
            super().__init__(count)

    monkeypatch.setattr(decode, "ThreadPoolExecutor", Pool)
    words = (old_folder / "val",) if name == "check" else (alice, old_folder / "val")
    cache = ("--cache", "none") if name == "evaluate" else ()
    run(monkeypatch, name, *words, "--workers", "3", *cache)
    assert set(threads) == {3}
