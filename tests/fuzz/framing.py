"""Open Inference Protocol: a request is parsed and answered in full, or rejected with 400 or 422."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from starlette.exceptions import HTTPException

from fuzz.fuzzing import Target
from taskgraft.serving import v2_protocol

SIZE, MAX_BATCH = 2, 4  # a model of 2 pixels: twelve bytes an image
CLASSES = {"logits_a": ["x", "y"]}
BLANK = {"name": "image", "shape": [1, 2, 2, 3], "datatype": "UINT8"}
ENCODED = {"name": "image_bytes", "shape": [2], "datatype": "BYTES"}
WORDS = (
    b'"inputs"', b'"outputs"', b'"parameters"', b'"binary_data_size"', b'"binary_data"', b'"classification"',
    b'"data"', b'"shape"', b'"image_bytes"', b'"BYTES"', b'"UINT8"', b'"logits_a"', b'"binary_data_output"', b"true",
    b"null", b"-1", b"1e999", b"18446744073709551616", b"NaN", b'"\\ud800"', b"[[[[", b"{}", b'{"name": "logits_a"}',
    b"\xff\xff\xff\xff",
)  # fmt: skip


def target(folder: Path) -> Target:
    output = {"name": "logits_a", "parameters": {"classification": 1, "binary_data": True}}
    seeds = [
        encode({"inputs": [{**BLANK, "data": list(range(12))}]}),
        encode({"inputs": [{**BLANK, "data": [[[[1, 2, 3]] * 2] * 2]}], "id": "7", "outputs": [output]}),
        encode({"inputs": [{**BLANK, "parameters": {"binary_data_size": 12}}]}, bytes(12)),
        encode({"inputs": [{**ENCODED, "parameters": {"binary_data_size": 13}}]}, b"\3\0\0\0abc\2\0\0\0de"),
        encode({"inputs": [{**ENCODED, "data": ["YWJj", "ZGU="]}], "parameters": {"binary_data_output": True}}),
    ]
    return Target(one, seeds, WORDS, longest=2000, executions=6000)


def encode(message: dict, blob: bytes = b"") -> bytes:
    """A request as this target takes it: the header's value up to the first line break, then the body."""
    text = json.dumps(message).encode()
    return (str(len(text)).encode() if blob else b"") + b"\n" + text + blob


def one(data: bytes) -> None:
    header, _, body = data.partition(b"\n")
    try:
        request = v2_protocol.parse_request(
            body,
            header.decode("latin-1") or None,
            size=SIZE,
            channels=3,
            max_batch=MAX_BATCH,
            outputs=["logits_a", "label_a"],
        )
        count = request.batch_size
        assert 1 <= count <= MAX_BATCH
        assert request.pixels is None or request.pixels.shape == (count, SIZE, SIZE, 3)
        logits = np.zeros((count, 2), np.float32)
        tensors = [
            v2_protocol.OutputTensor("logits_a", "FP32", logits.shape, logits),
            v2_protocol.OutputTensor("label_a", "BYTES", (count,), [b"x"] * count),
        ]
        content, length = v2_protocol.encode_response("model", request, tensors, CLASSES)
        assert json.loads(content[:length])["outputs"]
        assert len(content) < 10_000
    except HTTPException as error:
        check_error(error)


def check_error(error: HTTPException) -> None:
    assert error.status_code in (400, 422)
    assert json.dumps(error.detail, ensure_ascii=False).encode()
