"""The process that opens pickles: it is not this one, it is replaced when it dies, and it may write nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from taskgraft.bundle import pickles, unpickle
from taskgraft.errors import TaskgraftError
from toys import same

PLAIN = {"a.weight": torch.arange(6.0).reshape(2, 3).t(), "n": torch.tensor(3), "h": torch.ones(2).half()}


def saved(path: Path, value: object) -> Path:
    torch.save(value, path)
    return path


def test_tensors_and_texts_come_back(tmp_path: Path) -> None:
    tensors, rest, found = pickles.read(saved(tmp_path / "a b\n.pt", {"arch": "x", "epoch": 3, "state_dict": PLAIN}))
    assert same(tensors, PLAIN)
    assert (rest, found) == ({"arch": "x"}, ["weights from its entry 'state_dict'"])
    assert tensors["a.weight"].is_contiguous()


def test_shared_tensors_are_each_their_own(tmp_path: Path) -> None:
    both = torch.ones(4)
    tensors, _, _ = pickles.read(saved(tmp_path / "x.pt", {"a": both, "b": both[:2]}))
    assert same(tensors, {"a": both, "b": both[:2]})


def test_the_process_that_dies_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "x.pt", PLAIN)
    pickles.read(path)
    first = pickles._HELPERS[0]
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert same(pickles.read(path)[0], PLAIN)
    second = pickles._HELPERS[0]
    assert second.pid not in (first.pid, os.getpid())
    monkeypatch.setattr(second, "poll", lambda: None)  # it dies after it was found alive
    second.send_signal(signal.SIGKILL)
    second.wait()
    with pytest.raises(TaskgraftError, match=r"x\.pt is no sound PyTorch checkpoint: the process that opened it ended"):
        pickles.read(path)
    assert same(pickles.read(path)[0], PLAIN)


@pytest.mark.skipif(sys.platform != "linux", reason="limits on memory are set on Linux alone")
def test_it_may_neither_write_nor_take_all_memory(tmp_path: Path) -> None:
    """In a process of its own, since limits cannot be taken back."""
    code = (
        "import resource, sys, runpy, torch\n"
        f"made = runpy.run_path({unpickle.__file__!r}, run_name='helper')\n"
        "made['_confine'](1000)\n"
        "for risky in (lambda: open('x', 'w').write('y' * 9) and open('x').flush(), lambda: torch.ones(2**32)):\n"
        "    try:\n"
        "        risky(); print('done')\n"
        "    except (OSError, RuntimeError, MemoryError) as error:\n"
        "        print('refused', type(error).__name__)\n"
        "print(resource.getrlimit(resource.RLIMIT_CORE))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert "refused RuntimeError" in done.stdout, done.stdout + done.stderr
    assert "(0, 0)" in done.stdout
    assert not (tmp_path / "x").exists() or not (tmp_path / "x").stat().st_size
