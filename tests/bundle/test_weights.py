"""Files of weights that anybody wrote: what is opened, what was inferred, and what is refused unread."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from taskgraft.bundle import unpickle, weights
from taskgraft.errors import TaskgraftError
from toys import same

PLAIN = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}
AVERAGE = {name: value + 1 for name, value in PLAIN.items()}


def saved(path: Path, value: Any) -> Path:
    torch.save(value, path)
    return path


@pytest.mark.parametrize("name", ["x.pt", "x.pth", "x.pth.tar", "x.bin", "x.ckpt"])
def test_plain_weights(tmp_path: Path, name: str) -> None:
    tensors, rest, found = weights.load(saved(tmp_path / name, OrderedDict(PLAIN)))
    assert same(tensors, PLAIN)
    assert (rest, found) == ({}, [])


def test_safetensors(tmp_path: Path) -> None:
    save_file(PLAIN, tmp_path / "x.safetensors")
    assert same(weights.load(tmp_path / "x.safetensors")[0], PLAIN)


@pytest.mark.parametrize("key", unpickle.CONTAINERS)
def test_containers(tmp_path: Path, key: str) -> None:
    path = saved(tmp_path / "x.pt", {"epoch": 3, "arch": "resnet18", "optimizer": {"lr": 0.1}, key: PLAIN})
    tensors, rest, found = weights.load(path)
    assert same(tensors, PLAIN)
    assert rest["arch"] == "resnet18"
    assert found == [f"weights from its entry {key!r}"]


def test_an_average_of_weights_is_preferred(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pt", {"state_dict": PLAIN, "state_dict_ema": AVERAGE})
    tensors, _, found = weights.load(path)
    assert same(tensors, AVERAGE)
    assert "state_dict_ema" in found[0]


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod."])
def test_prefixes_that_all_names_share_are_taken_off(tmp_path: Path, prefix: str) -> None:
    path = saved(tmp_path / "x.pt", {"state_dict": {prefix + name: value for name, value in PLAIN.items()}})
    tensors, _, found = weights.load(path)
    assert same(tensors, PLAIN)
    assert all("taken off" in line for line in found[1:])
    assert len(found) == 1 + prefix.count(".")


def test_a_prefix_that_one_name_lacks_stays(tmp_path: Path) -> None:
    mixed = {"module.a": torch.ones(1), "b": torch.ones(1)}
    assert same(weights.load(saved(tmp_path / "x.pt", mixed))[0], mixed)


def test_a_large_file_pointer_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(TaskgraftError, match=r"is a Git LFS pointer.*git lfs pull"):
        weights.load(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    path = saved(tmp_path / "x.pt", {**PLAIN, "b": torch.tensor([1.0, value])})
    with pytest.raises(TaskgraftError, match="tensor 'b' holds values that are not finite"):
        weights.load(path)


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {os.environ['TRAP']}",)


@pytest.mark.parametrize("writer", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, 2))])
def test_code_in_a_file_is_named_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: Any) -> None:
    trap = tmp_path / "trap"
    monkeypatch.setenv("TRAP", str(trap))
    path = tmp_path / "x.pt"
    writer({"epoch": 3, "x": Malicious()}, path)
    with pytest.raises(TaskgraftError, match=r"opening it would run code from the file \(.*system") as caught:
        weights.load(path)
    assert "torch.save(model.state_dict()" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not trap.exists()


def test_a_whole_module_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskgraftError, match=r"GLOBAL torch\.nn\.modules\.linear\.Linear"):
        weights.load(saved(tmp_path / "x.pt", torch.nn.Linear(2, 2)))


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
@pytest.mark.parametrize("keep", [0, 3, 100, 400])
def test_a_damaged_file_is_refused(tmp_path: Path, name: str, keep: int) -> None:
    path = tmp_path / name
    big = {name: value.repeat(40, 40) if value.dim() == 2 else value for name, value in PLAIN.items()}
    save_file(big, path) if name.endswith("safetensors") else saved(path, big)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(TaskgraftError, match=str(path)):
        weights.load(path)


@pytest.mark.parametrize("seed", range(20))
def test_rubbish_is_refused_whatever_it_holds(tmp_path: Path, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rubbish = bytes(torch.randint(0, 256, (200,), generator=generator).tolist())
    (tmp_path / "x.pt").write_bytes(rubbish if seed % 2 else pickle.dumps([1, 2], 2)[: 2 + seed % 4] + rubbish)
    with pytest.raises(TaskgraftError, match=r"x\.pt"):
        weights.load(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("value", "message"),
    [([torch.ones(1)], "holds a list"), ({"epoch": 3}, "holds no tensors, only the entries epoch; save")],
)
def test_what_is_no_weights_is_refused(tmp_path: Path, value: Any, message: str) -> None:
    with pytest.raises(TaskgraftError, match=message):
        weights.load(saved(tmp_path / "x.pt", value))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskgraftError, match="does not exist or is no file"):
        weights.load(tmp_path / "gone.pt")
