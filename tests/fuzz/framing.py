"""The Open Inference Protocol: bytes -> a request, a request -> bytes. Refused with 400 or 422, or read in full."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from fuzz.fuzzing import Target
from taskgraft.serving import v2_protocol
from taskgraft.serving.limits import Refusal

SIZE, MOST = 2, 4  # a model of 2 pixels: twelve bytes an image
LABELS = {"logits_a": ["x", "y"]}
BLANK = {"name": "image", "shape": [1, 2, 2, 3], "datatype": "UINT8"}
ENCODED = {"name": "image_bytes", "shape": [2], "datatype": "BYTES"}
WORDS = (
    b'"inputs"', b'"outputs"', b'"parameters"', b'"binary_data_size"', b'"binary_data"', b'"classification"',
    b'"data"', b'"shape"', b'"image_bytes"', b'"BYTES"', b'"UINT8"', b'"logits_a"', b'"binary_data_output"', b"true",
    b"null", b"-1", b"1e999", b"18446744073709551616", b"NaN", b'"\\ud800"', b"[[[[", b"{}", b'{"name": "logits_a"}',
    b"\xff\xff\xff\xff",
)  # fmt: skip


def target(folder: Path) -> Target:
    whole = {"name": "logits_a", "parameters": {"classification": 1, "binary_data": True}}
    seeds = [
        given({"inputs": [{**BLANK, "data": list(range(12))}]}),
        given({"inputs": [{**BLANK, "data": [[[[1, 2, 3]] * 2] * 2]}], "id": "7", "outputs": [whole]}),
        given({"inputs": [{**BLANK, "parameters": {"binary_data_size": 12}}]}, bytes(12)),
        given({"inputs": [{**ENCODED, "parameters": {"binary_data_size": 13}}]}, b"\3\0\0\0abc\2\0\0\0de"),
        given({"inputs": [{**ENCODED, "data": ["YWJj", "ZGU="]}], "parameters": {"binary_data_output": True}}),
    ]
    return Target(one, seeds, WORDS, longest=2000, executions=6000)


def given(text: dict, blob: bytes = b"") -> bytes:
    """A request as this target takes it: the header's value up to the first line break, then the body."""
    body = json.dumps(text).encode()
    return (str(len(body)).encode() if blob else b"") + b"\n" + body + blob


def one(data: bytes) -> None:
    header, _, body = data.partition(b"\n")
    try:
        asked = v2_protocol.parse(body, header.decode("latin-1") or None, SIZE, MOST)
        count = len(asked.pictures) if asked.pixels is None else len(asked.pixels)
        assert 1 <= count <= MOST
        assert asked.pixels is None or asked.pixels.shape == (count, SIZE, SIZE, 3)
        logits = np.zeros((count, 2), np.float32)
        tensors = [
            v2_protocol.Tensor("logits_a", "FP32", logits.shape, logits),
            v2_protocol.Tensor("label_a", "BYTES", (count,), [b"x"] * count),
        ]
        content, length = v2_protocol.answer("model", asked, tensors, LABELS)
        told = json.loads(content[:length])
        assert told["outputs"]
        assert len(content) < 10_000
    except Refusal as refused:
        sound(refused)


def sound(refused: Refusal) -> None:
    assert refused.status in (400, 422)
    assert json.dumps(refused.message, ensure_ascii=False).encode()
