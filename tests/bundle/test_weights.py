"""Files of weights that anybody wrote: what is read, what is inferred, and what is refused without being run."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import pkgutil
import signal
import subprocess
import sys
import warnings
from collections import OrderedDict, defaultdict, deque
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from fractions import Fraction
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from taskgraft.bundle import unpickle, weights
from taskgraft.bundle.weights import load_pickle, load_weights, require_finite
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
    assert equal(loaded.entries[""], TENSORS)
    assert (loaded.texts, loaded.class_names) == ({}, {})


def test_load_safetensors(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "x.safetensors")
    assert equal(load_weights(tmp_path / "x.safetensors").entries[""], TENSORS)


def test_load_pickle_keeps_texts_and_makes_tensors_contiguous(tmp_path: Path) -> None:
    tensors = {"a.weight": torch.arange(6.0).reshape(2, 3).t(), "n": torch.tensor(3), "h": torch.ones(2).half()}
    loaded = load_pickle(save(tmp_path / "a b\n.pt", {"arch": "x", "epoch": 3, "state_dict": tensors}))
    assert equal(loaded.entries["state_dict"], tensors)
    assert loaded.entries["state_dict"]["a.weight"].is_contiguous()
    assert loaded.texts == {"arch": "x"}


def test_load_pickle_copies_shared_tensors(tmp_path: Path) -> None:
    both = torch.ones(4)
    loaded = load_pickle(save(tmp_path / "x.pt", {"a": both, "b": both[:2]}))
    assert equal(loaded.entries[""], {"a": both, "b": both[:2]})


def test_entries_within_entries_are_listed_without_those_of_the_optimizer(tmp_path: Path) -> None:
    inner: dict[str, Any] = {"module": TENSORS, "decay": 0.9}
    inner["again"] = inner  # no checkpoint has such a loop, but a pickle can
    state = {"state": {0: {"exp_avg": torch.ones(2)}}, "momentum": torch.ones(2)}
    path = save(
        tmp_path / "x.pt",
        {"ema": inner, "state_dict": {**AVERAGED, "names": np.array(["a"])}, "optimizer": state},
    )
    loaded = load_weights(path)
    assert list(loaded.entries) == ["state_dict", "ema.module"]
    assert equal(loaded.entries["ema.module"], TENSORS)
    assert equal(loaded.entries["state_dict"], AVERAGED)


def test_values_that_are_data_are_read(tmp_path: Path) -> None:
    """What training programs store beside the weights: none of it is code, whichever program wrote it."""
    args = argparse.Namespace(
        model="resnet18", output=PurePosixPath("runs/1"), root=PureWindowsPath("C:/x"), started=datetime.now(UTC)
    )
    others = {
        "best_acc": np.float64(0.9), "epoch": np.int64(3), "best": np.bool_(True), "matrix": np.eye(2),
        "names": np.array(["cat", "dog"]), "history": defaultdict(list, {"loss": [1.0]}), "last": deque([1], 3),
        "version": torch.__version__, "type": np.dtype("float32"), "random": np.random.RandomState(0).get_state(),
        "shape": torch.Size([1]), "device": torch.device("cpu"), "dtype": torch.float16, "took": timedelta(1),
    }  # fmt: skip
    loaded = load_weights(save(tmp_path / "x.pt", {"state_dict": TENSORS, "args": args, **others}))
    assert equal(loaded.entries["state_dict"], TENSORS)
    assert loaded.texts["args.model"] == "resnet18"
    assert loaded.texts["args.output"] == "runs/1"
    assert loaded.class_names == {"names": ["cat", "dog"]}


def test_shards_are_read_by_their_index(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    files = {name: f"model-0000{at}-of-00002.safetensors" for at, name in enumerate(TENSORS, 1)}
    index.write_text(json.dumps({"weight_map": files}))
    for name, file in files.items():
        save_file({name: TENSORS[name]}, tmp_path / file)
    assert equal(load_weights(index).entries[""], TENSORS)
    with pytest.raises(CheckpointError, match=r"one of several shards; give model\.safetensors\.index\.json"):
        load_weights(tmp_path / files["a.weight"])
    (tmp_path / files["a.bias"]).unlink()
    with pytest.raises(CheckpointError, match=r"names 2 files, but 1 are missing, first model-00002-of-00002"):
        load_weights(index)
    for content in (
        "{",
        "[]",
        '{"weight_map": {}}',
        '{"weight_map": {"a": "../x.safetensors"}}',
        '{"weight_map": {"a": 1}}',
    ):
        index.write_text(content)
        with pytest.raises(CheckpointError, match="is not an index of shards"):
            load_weights(index)


def test_git_lfs_pointer_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(CheckpointError, match=r"is a Git LFS pointer.*git lfs pull"):
        load_weights(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_weights_are_refused(tmp_path: Path, value: float) -> None:
    path = save(tmp_path / "x.pt", {**TENSORS, "b": torch.tensor([1.0, value])})
    with pytest.raises(CheckpointError, match="tensor 'b' contains NaN or infinite values"):
        require_finite(path, load_weights(path).entries[""])


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


class Level(Enum):
    """Written by its value."""

    HIGH = "high"


class Slots:
    """Written as two dictionaries."""

    __slots__ = ("model",)


@dataclass
class Settings:
    """Of a class that only its own program has, such as hyperparameters in a file of Lightning."""

    arch: str
    level: Level
    classes: tuple[str, ...]
    inner: Slots


def test_settings_of_a_programs_own_class_are_read_without_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = Slots()
    inner.model = "resnet34"
    config = Settings("resnet18", Level.HIGH, ("cat", "dog"), inner)
    monkeypatch.setattr(Settings, "__setstate__", lambda self, state: pytest.fail("its code ran"), raising=False)
    loaded = load_weights(save(tmp_path / "x.ckpt", {"state_dict": TENSORS, "hyper_parameters": {"config": config}}))
    assert equal(loaded.entries["state_dict"], TENSORS)
    assert loaded.texts["hyper_parameters.config.arch"] == "resnet18"
    assert loaded.texts["hyper_parameters.config.inner.model"] == "resnet34"
    assert loaded.class_names == {"hyper_parameters.config.classes": ["cat", "dog"]}


@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "subprocess.Popen"])
def test_a_program_beside_settings_is_not_stood_in_for(tmp_path: Path, name: str) -> None:
    class Call:
        def __reduce__(self) -> tuple[Any, ...]:
            return pkgutil.resolve_name(name), ("1",)

    path = save(tmp_path / "x.pt", {"state_dict": TENSORS, "config": Slots(), "x": Call()})
    with pytest.raises(CheckpointError, match="would run code from the file"):
        load_weights(path)


def test_classes_of_python_are_named_in_full(tmp_path: Path) -> None:
    path = save(tmp_path / "x.pt", {"state_dict": TENSORS, "share": Fraction(1, 3)})
    with pytest.raises(CheckpointError) as caught:
        load_weights(path)
    assert str(caught.value) == (
        f"{path} was not loaded because that would run code from the file (fractions.Fraction); if you trust it, save "
        "only the weights: torch.save(torch.load('x.pt', weights_only=False)['state_dict'], 'weights.pth'), or where "
        "it was saved, torch.save(model.state_dict(), …)"
    )


def test_whole_modules_and_torchscript_are_told_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"whole pickled nn\.Module.*linear\.Linear.*model\.state_dict\(\)"):
        load_weights(save(tmp_path / "x.pt", {"model": torch.nn.Linear(2, 2)}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, but its files remain
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"is a TorchScript archive.*torch\.jit\.load\('x\.pt'\)\.state_dict"):
        load_weights(tmp_path / "x.pt")


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


def test_arrays_sparse_tensors_and_pairs_are_read(tmp_path: Path) -> None:
    weight = torch.arange(6.0).reshape(2, 3)
    values = {"array": weight.numpy(), "sparse": weight.to_sparse(), "tensor": weight, "names": np.array(["a", "b"])}
    found = load_weights(save(tmp_path / "x.pt", (values, {"epoch": 3})))
    assert found.entries.keys() == {"0"}
    assert found.entries["0"].keys() == {"array", "sparse", "tensor"}
    assert all(torch.equal(value, weight) for value in found.entries["0"].values())


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # torch is to drop quantized tensors
def test_weights_that_cannot_be_trained_are_named(tmp_path: Path) -> None:
    weight = torch.arange(6.0).reshape(2, 3)
    quantized = torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8)
    with pytest.raises(CheckpointError, match=r"holds quantized weights \('a.w' and 1 more\), which cannot be trained"):
        load_weights(save(tmp_path / "x.pt", {"a.w": quantized, "b.w": quantized, "b.bias": weight}))
    with pytest.raises(
        CheckpointError, match=r"holds tensors without values \('w'\), as of a model on the device 'meta'"
    ):
        load_weights(save(tmp_path / "y.pt", {"w": weight.to("meta")}))


def test_formats_of_other_programs_are_named(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"\x08\x07")
    with pytest.raises(CheckpointError, match=r"x\.onnx is an ONNX model, not a checkpoint of PyTorch"):
        load_weights(tmp_path / "x.onnx")
    (tmp_path / "x.pt").write_bytes(b"\x08\x07")
    with pytest.raises(CheckpointError, match=r"x\.pt is not a valid PyTorch checkpoint: Unsupported operand 8; copy"):
        load_weights(tmp_path / "x.pt")


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
    assert equal(load_pickle(path).entries[""], TENSORS)
    second = weights._READER.process
    assert second is not None
    assert second.pid not in (first.pid, os.getpid())
    monkeypatch.setattr(second, "poll", lambda: None)  # it dies after it was found alive
    second.send_signal(signal.SIGKILL)
    second.wait()
    with pytest.raises(CheckpointError, match=r"x\.pt is not a valid PyTorch checkpoint: it crashed the process"):
        load_pickle(path)
    assert equal(load_pickle(path).entries[""], TENSORS)


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
