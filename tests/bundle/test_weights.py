"""Files of weights that anybody wrote: what is read, what is inferred, and what is refused without being run."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from taskgraft.bundle import unpickle, weights
from taskgraft.bundle.weights import load_pickle, load_weights
from taskgraft.errors import CheckpointError
from toys import equal

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}
AVERAGED = {name: value + 1 for name, value in TENSORS.items()}


def save(path: Path, value: Any) -> Path:
    torch.save(value, path)
    return path


@pytest.mark.parametrize("name", ["x.pt", "x.pth", "x.pth.tar", "x.bin", "x.ckpt"])
def test_load_state_dict(tmp_path: Path, name: str) -> None:
    loaded = load_weights(save(tmp_path / name, OrderedDict(TENSORS)))
    assert equal(loaded.tensors, TENSORS)
    assert (loaded.texts, loaded.notes) == ({}, [])


def test_load_safetensors(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "x.safetensors")
    assert equal(load_weights(tmp_path / "x.safetensors").tensors, TENSORS)


def test_load_pickle_keeps_texts_and_makes_tensors_contiguous(tmp_path: Path) -> None:
    tensors = {"a.weight": torch.arange(6.0).reshape(2, 3).t(), "n": torch.tensor(3), "h": torch.ones(2).half()}
    loaded = load_pickle(save(tmp_path / "a b\n.pt", {"arch": "x", "epoch": 3, "state_dict": tensors}))
    assert equal(loaded.tensors, tensors)
    assert loaded.tensors["a.weight"].is_contiguous()
    assert (loaded.texts, loaded.notes) == ({"arch": "x"}, ["weights from its entry 'state_dict'"])


def test_load_pickle_copies_shared_tensors(tmp_path: Path) -> None:
    both = torch.ones(4)
    assert equal(load_pickle(save(tmp_path / "x.pt", {"a": both, "b": both[:2]})).tensors, {"a": both, "b": both[:2]})


@pytest.mark.parametrize("key", unpickle.CONTAINERS)
def test_containers_are_searched(tmp_path: Path, key: str) -> None:
    path = save(tmp_path / "x.pt", {"epoch": 3, "arch": "resnet18", "optimizer": {"lr": 0.1}, key: TENSORS})
    loaded = load_weights(path)
    assert equal(loaded.tensors, TENSORS)
    assert loaded.texts["arch"] == "resnet18"
    assert loaded.notes == [f"weights from its entry {key!r}"]


def test_averaged_weights_are_preferred(tmp_path: Path) -> None:
    loaded = load_weights(save(tmp_path / "x.pt", {"state_dict": TENSORS, "state_dict_ema": AVERAGED}))
    assert equal(loaded.tensors, AVERAGED)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod."])
def test_common_prefixes_are_removed(tmp_path: Path, prefix: str) -> None:
    loaded = load_weights(save(tmp_path / "x.pt", {prefix + name: value for name, value in TENSORS.items()}))
    assert equal(loaded.tensors, TENSORS)
    assert len(loaded.notes) == prefix.count(".")
    assert all("removed from the names" in note for note in loaded.notes)


def test_partial_prefix_stays(tmp_path: Path) -> None:
    mixed = {"module.a": torch.ones(1), "b": torch.ones(1)}
    assert equal(load_weights(save(tmp_path / "x.pt", mixed)).tensors, mixed)


def test_git_lfs_pointer_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(CheckpointError, match=r"is a Git LFS pointer.*git lfs pull"):
        load_weights(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_weights_are_refused(tmp_path: Path, value: float) -> None:
    path = save(tmp_path / "x.pt", {**TENSORS, "b": torch.tensor([1.0, value])})
    with pytest.raises(CheckpointError, match="tensor 'b' contains NaN or infinite values"):
        load_weights(path)


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {os.environ['TRAP']}",)


@pytest.mark.parametrize("writer", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, 2))])
def test_code_in_a_pickle_is_named_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: Any) -> None:
    trap = tmp_path / "trap"
    monkeypatch.setenv("TRAP", str(trap))
    writer({"epoch": 3, "x": Malicious()}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"would run code from the file \(.*system.*torch\.save\(model") as caught:
        load_weights(tmp_path / "x.pt")
    assert "\n" not in str(caught.value)
    assert not trap.exists()


def test_pickled_module_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"GLOBAL torch\.nn\.modules\.linear\.Linear"):
        load_weights(save(tmp_path / "x.pt", torch.nn.Linear(2, 2)))


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
@pytest.mark.parametrize("keep", [0, 3, 100, 400])
def test_truncated_file_is_refused(tmp_path: Path, name: str, keep: int) -> None:
    path = tmp_path / name
    large = {"a.weight": torch.arange(6.0).reshape(2, 3).repeat(40, 40), "a.bias": torch.ones(2)}
    save_file(large, path) if name.endswith("safetensors") else save(path, large)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=str(path)):
        load_weights(path)


@pytest.mark.parametrize("seed", range(20))
def test_random_bytes_are_refused(tmp_path: Path, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    noise = bytes(torch.randint(0, 256, (200,), generator=generator).tolist())
    (tmp_path / "x.pt").write_bytes(noise if seed % 2 else pickle.dumps([1, 2], 2)[: 2 + seed % 4] + noise)
    with pytest.raises(CheckpointError, match=r"x\.pt"):
        load_weights(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("value", "message"),
    [([torch.ones(1)], "contains a list"), ({"epoch": 3}, "contains no tensors, only the entries epoch; save")],
)
def test_other_contents_are_refused(tmp_path: Path, value: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_weights(save(tmp_path / "x.pt", value))


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist or is not a file"):
        load_weights(tmp_path / "gone.pt")


@pytest.mark.slow
def test_dead_reader_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "x.pt", TENSORS)
    load_pickle(path)
    first = weights._READER.process
    assert first is not None
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert equal(load_pickle(path).tensors, TENSORS)
    second = weights._READER.process
    assert second is not None
    assert second.pid not in (first.pid, os.getpid())
    monkeypatch.setattr(second, "poll", lambda: None)  # it dies after it was found alive
    second.send_signal(signal.SIGKILL)
    second.wait()
    with pytest.raises(CheckpointError, match=r"x\.pt is not a valid PyTorch checkpoint: it crashed the process"):
        load_pickle(path)
    assert equal(load_pickle(path).tensors, TENSORS)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits on memory are set on Linux alone")
def test_reader_may_neither_write_files_nor_take_all_memory(tmp_path: Path) -> None:
    """In a process of its own, since limits cannot be taken back."""
    code = f"""
import resource, runpy, torch
runpy.run_path({unpickle.__file__!r}, run_name="helper")["limit_resources"](1000)
for risky in (lambda: open("x", "w").write("y" * 9) and open("x").flush(), lambda: torch.ones(2**32)):
    try:
        risky(); print("done")
    except (OSError, RuntimeError, MemoryError) as error:
        print("refused", type(error).__name__)
print(resource.getrlimit(resource.RLIMIT_CORE))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert "refused RuntimeError" in done.stdout, done.stdout + done.stderr
    assert "(0, 0)" in done.stdout
    assert not (tmp_path / "x").exists() or not (tmp_path / "x").stat().st_size
