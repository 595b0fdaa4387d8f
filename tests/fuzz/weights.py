"""Files of weights: safetensors whose header lies, and pickles that would rather be programs."""

from __future__ import annotations

import contextlib
import io
import json
from collections import OrderedDict
from pathlib import Path

import torch
from safetensors.torch import save

from fuzz.fuzzing import Target
from taskgraft.bundle import unpickle, weights
from taskgraft.errors import TaskgraftError

TENSORS = {"fc.weight": torch.arange(6.0).reshape(2, 3), "fc.bias": torch.ones(2), "n": torch.tensor(3)}
HEADERS = (
    b"__metadata__", b'"dtype"', b'"shape"', b'"data_offsets"', b"F32", b"F16", b"BF16", b"F8_E4M3", b"F8_E5M2",
    b"F8_E8M0", b"F4", b"F6_E2M3", b"I64", b"BOOL", b"C64", b"U16", b"[0, 0]", b"18446744073709551615", b"-1", b"1e9",
    b"module.",
)  # fmt: skip
OPCODES = (
    b"\x80\x02", b"cos\nsystem\n", b"(", b"t", b"R", b"}", b"]", b"q\0", b"h\0",
    b"ctorch._utils\n_rebuild_tensor_v2\n", b"\x8a\x0a", b"ccollections\nOrderedDict\n", b"b", b"u", b"s", b".",
    b"X\x05\0\0\0storage", b"Q", b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f", b"ctorch\nFloatStorage\n", b"\x93",
    b"\x8c\x05posix", b"J\xff\xff\xff\x7f", b"K\x01", b"N", b"2", b"0",
)  # fmt: skip


def safetensors(folder: Path) -> Target:
    file = folder / "f.safetensors"

    def one(data: bytes) -> None:
        if data[:1] == b"{":  # a header alone: its length and some bytes of tensors are set around it
            data = len(data).to_bytes(8, "little") + data + bytes(64)
        file.write_bytes(data)
        try:
            tensors = weights.load_weights(file).entries[""]
            weights.require_finite(file, tensors)
        except TaskgraftError:
            return
        assert all(bool(torch.isfinite(value.float()).all()) for value in tensors.values())

    plain = json.dumps({"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}).encode()
    eight = plain.replace(b"F32", b"F8_E4M3").replace(b"16", b"4")  # was a crash once, as was F4
    return Target(
        one, [save(TENSORS), save(TENSORS, {"arch": "x"}), plain, eight], HEADERS, longest=1500, executions=400
    )


def pickles(folder: Path) -> Target:
    """In this process, so that what only a process of its own would survive is seen: a crash, a hang, a bomb."""
    file = folder / "f.pth"

    def one(data: bytes) -> None:
        file.write_bytes(data)
        with contextlib.suppress(Exception):  # the process that opens pickles answers each with its first line
            unpickle.convert(file)

    seeds = []
    for zipped in (False, True):
        for state in (TENSORS, {"state_dict": OrderedDict(TENSORS), "arch": "resnet18"}):
            stream = io.BytesIO()
            torch.save(state, stream, _use_new_zipfile_serialization=zipped)
            seeds.append(stream.getvalue())
    return Target(one, seeds, OPCODES, longest=3000, executions=250)
