"""Tensors from an untrusted file: safetensors, or a pickle.

Pickles are opened by another process (`unpickle`): a crash, a decompression bomb or an exploit ends there, and what
comes back is safetensors, never a pickle.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file
from torch import Tensor

from taskgraft.bundle import unpickle
from taskgraft.errors import CheckpointError
from taskgraft.models.tensor_cache import memoize_in
from taskgraft.results.files import digest
from taskgraft.types import Params

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
OTHER_FORMATS = {  # by suffix
    ".onnx": "an ONNX model",
    ".pt2": "a program of torch.export",
    ".h5": "a file of Keras",
    ".keras": "a file of Keras",
    ".tflite": "a model of TensorFlow Lite",
    ".npz": "an archive of NumPy",
}
LFS_POINTER = b"version https://git-lfs"
IDLE_SECONDS = 20.0  # after which the process ends: it takes as much memory as a bare torch
METADATA = "about"  # name of what is no tensor in the cache, as JSON
INDEX = ".index.json"  # ends the name of the list of a checkpoint's shards
SHARD = re.compile(r"-\d{5}-of-(?!00001)\d{5}\.")  # in the name of one of several


class Weights(NamedTuple):
    """The contents of a checkpoint.

    `entries` are its tensors by the path of the entry that holds them and by name; the path of the top level is "".
    `texts` are short texts by path, such as 'args.model', and `class_names` what may be class names.
    """

    entries: dict[str, Params]
    texts: dict[str, str]
    class_names: dict[str, Any]


def load_weights(path: Path, cache: Path | None = None) -> Weights:
    """Load the tensors of a file; their values are not checked (`require_finite`).

    Args:
        path: a file of safetensors (by its suffix), the index of its shards, or a pickle of PyTorch.
        cache: a folder that keeps the tensors of pickles, so that the same contents are not opened again.

    Raises:
        CheckpointError: the file is missing, damaged or of another kind, or its pickle needs code.
    """
    if path.name.endswith(INDEX):
        entries = [_load_file(shard, cache).entries.get("", {}) for shard in list_shards(path)]
        return Weights({"": {name: value for entry in entries for name, value in entry.items()}}, {}, {})
    index = path.with_name(SHARD.sub(".", path.name) + INDEX)
    if SHARD.search(path.name):
        raise CheckpointError(f"{path} is one of several shards; give {index.name}, which lists them, beside them all")
    return _load_file(path, cache)


def _load_file(path: Path, cache: Path | None) -> Weights:
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist or is not a file; give a checkpoint, a bundle or a timm name")
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise CheckpointError(f"{path} is a Git LFS pointer, not the weights; fetch them with: git lfs pull")
    if kind := OTHER_FORMATS.get(path.suffix.lower()):
        raise CheckpointError(f"{path} is {kind}, not a checkpoint of PyTorch; give the one that it was made from")
    return Weights({"": load_safetensors(path)}, {}, {}) if path.suffix == ".safetensors" else load_pickle(path, cache)


def list_shards(index: Path) -> list[Path]:
    """List the files that an index such as model.safetensors.index.json names, all of which must exist.

    Raises:
        CheckpointError: the index is damaged, or a file is missing.
    """
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        is_valid = bool(names) and not any(set(name) & set("/\\:") or name.endswith(INDEX) for name in names)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        is_valid, names = False, []
    if not is_valid:
        raise CheckpointError(f"{index} is not an index of shards with a weight_map of file names; copy it again")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{index} names {len(names)} files, but {len(missing)} are missing, first {missing[0]}; copy them beside it"
        )
    return [index.parent / name for name in names]


def load_safetensors(path: Path) -> dict[str, Tensor]:
    """Load a file of safetensors; raises CheckpointError where it is damaged."""
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a valid safetensors file: {error}; copy it again") from error


def sort_naturally(name: str) -> list[str]:
    """Return a key that sorts numbers in names by their value."""
    return [part.zfill(9) if part.isdigit() else part for part in name.split(".")]


def require_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Check that all values are finite and of a common floating-point type.

    Raises:
        CheckpointError: a tensor holds NaN or infinity, or is complex or of 8 or 4 bits.
    """
    for name, value in tensors.items():
        if not value.is_floating_point() and not value.is_complex():
            continue
        if value.dtype not in DTYPES:
            dtype = str(value.dtype).removeprefix("torch.")
            raise CheckpointError(
                f"{path}: tensor {name!r} is {dtype}; save the weights as float32, float16 or bfloat16"
            )
        if not bool(torch.isfinite(value).all()):
            raise CheckpointError(
                f"{path}: tensor {name!r} contains NaN or infinite values; save a healthy model again"
            )


def load_pickle(path: Path, cache: Path | None = None) -> Weights:
    """Load a pickle's tensors without running code from it.

    Args:
        path: a file written by torch.save.
        cache: see `load_weights`.

    Raises:
        CheckpointError: it is damaged, needs code, holds no tensors, or ends the process that opens it.
    """
    if cache is None:
        return _assemble(*_READER.read(path))

    def read() -> Params:
        tensors, about = _READER.read(path)
        return {METADATA: torch.frombuffer(bytearray(json.dumps(about).encode()), dtype=torch.uint8), **tensors}

    memoize = memoize_in(cache / "tensors", "pickle", unpickle.RULES, torch.__version__, digest(path))
    cached = memoize("tensors", read)
    return _assemble(cached, json.loads(cached.pop(METADATA).numpy().tobytes()))


def _assemble(tensors: Params, about: dict[str, Any]) -> Weights:
    """Sort tensors by the entries whose numbers their names begin with."""
    entries: dict[str, Params] = {path: {} for path in about["entries"]}
    for numbered, value in tensors.items():
        number, _, name = numbered.partition(".")
        entries[about["entries"][int(number)]][name] = value
    return Weights(entries, about["texts"], about["class_names"])


class PickleReader:
    """A process that opens pickles, started when needed; it ends after a while without work, and with this one."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self._timer: threading.Timer | None = None
        self._lock = threading.Lock()
        atexit.register(self._stop)

    def read(self, path: Path) -> tuple[Params, dict[str, Any]]:
        """Read one pickle's numbered tensors and what is said of them; raises CheckpointError as `load_pickle` does."""
        with self._lock:
            if self._timer:
                self._timer.cancel()
            reply = self._request(path)
            self._timer = threading.Timer(IDLE_SECONDS, self._stop_idle)
            self._timer.daemon = True
            self._timer.start()
        status, body = reply[:1], reply[1:]
        if status != unpickle.OK:
            raise CheckpointError(f"{path} {body.decode('utf-8', 'replace')}")
        metadata = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])["__metadata__"]  # of safetensors
        return load(body), {key: json.loads(value) for key, value in metadata.items()}

    def _request(self, path: Path) -> bytes:
        process = self.process if self.process and self.process.poll() is None else self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps({"path": os.fsencode(path.absolute()).hex()}).encode() + b"\n")
            process.stdin.flush()
            header = process.stdout.read(unpickle.LENGTH.size)
            if len(header) == unpickle.LENGTH.size:
                (length,) = unpickle.LENGTH.unpack(header)
                reply = process.stdout.read(length)
                if len(reply) == length:
                    return reply
        except BrokenPipeError:
            pass
        self._stop()
        return unpickle.REFUSED + b"is not a valid PyTorch checkpoint: it crashed the process that opened it"

    def _start(self) -> subprocess.Popen[bytes]:
        self._stop()
        command = [sys.executable, "-P", "-W", "ignore", str(Path(unpickle.__file__))]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, env=env)
        return self.process

    def _stop_idle(self) -> None:
        with self._lock:
            self._stop()

    def _stop(self) -> None:
        process, self.process = self.process, None  # taken first: the timer and the end of the program may coincide
        if process:
            process.kill()
            process.communicate()


_READER = PickleReader()  # shared: the next pickle need not wait for torch's import
