"""What the trials of a search share: computed once for a name and a key, and never read half-written."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch

from taskgraft.tuning.executor import START_METHOD
from taskgraft.tuning.trial import build_trial_cache

VALUES = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.float16)}


def counted(folder: Path, key: str, calls: list[str], saved: list[tuple[str, float]]) -> Any:
    once = build_trial_cache(folder, key, lambda name, seconds: saved.append((name, seconds)))

    def ask(name: str) -> dict[str, torch.Tensor]:
        def make() -> dict[str, torch.Tensor]:
            calls.append(name)
            return VALUES

        return once(name, make)

    return ask


def test_computed_once(tmp_path: Path) -> None:
    calls: list[str] = []
    saved: list[tuple[str, float]] = []
    ask = counted(tmp_path, "parent", calls, saved)
    first, second = ask("Fisher"), ask("Fisher")
    assert calls == ["Fisher"]
    assert [name for name, _ in saved] == ["Fisher"]
    for name, value in VALUES.items():
        assert torch.equal(first[name], value)
        assert torch.equal(second[name], value)
        assert second[name].dtype == value.dtype


def test_name_and_key_identify_tensors(tmp_path: Path) -> None:
    calls: list[str] = []
    counted(tmp_path, "parent", calls, [])("features")
    counted(tmp_path, "parent", calls, [])("answers")
    counted(tmp_path, "another parent", calls, [])("features")
    assert calls == ["features", "answers", "features"]


def test_leftovers_of_killed_process_are_deleted(tmp_path: Path) -> None:
    calls: list[str] = []
    ask = counted(tmp_path, "parent", calls, [])
    ask("features")
    (file,) = tmp_path.glob("*.safetensors")
    file.rename(tmp_path / f".{file.name}.123")
    other = tmp_path / f".{'0' * 32}.safetensors.123"  # being written by somebody who holds its own lock
    other.write_bytes(b"half")
    ask("features")
    assert len(calls) == 2
    assert {path.name for path in tmp_path.glob(".*")} == {other.name}


@pytest.mark.parametrize("damage", [b"", b"half of it", None])
def test_damaged_file_is_computed_again(damage: bytes | None, tmp_path: Path) -> None:
    calls: list[str] = []
    ask = counted(tmp_path, "parent", calls, [])
    ask("features")
    (file,) = tmp_path.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-3] if damage is None else damage)
    assert torch.equal(ask("features")["a"], VALUES["a"])
    assert len(calls) == 2


def slow(folder: Path, pipe: Any) -> None:
    made = []

    def make() -> dict[str, torch.Tensor]:
        made.append(1)
        multiprocessing.Event().wait(0.5)
        return VALUES

    build_trial_cache(folder, "parent", lambda name, seconds: None)("answers", make)
    pipe.send(len(made))


@pytest.mark.slow
def test_processes_wait_for_each_other(tmp_path: Path) -> None:
    context = multiprocessing.get_context(START_METHOD)
    pipes = []
    for _ in range(2):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=slow, args=(tmp_path, theirs))
        process.start()
        pipes.append((process, ours))
    assert sum(pipe.recv() for _, pipe in pipes) == 1
    for process, _ in pipes:
        process.join()
