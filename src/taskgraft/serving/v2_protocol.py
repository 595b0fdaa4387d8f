"""Open Inference Protocol V2: from the bytes of a request to tensors and back, as pure functions.

Requests are JSON, optionally with the binary tensor extension: the header Inference-Header-Content-Length gives the
length of the JSON, and the tensors follow in order, each `binary_data_size` bytes long. A BYTES tensor is a sequence of
elements, each a 4-byte little-endian length and its bytes; in JSON its elements are base64.

Source: https://github.com/kserve/open-inference-protocol and Triton's extension_binary_data.md.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError
from starlette.exceptions import HTTPException

LENGTH_HEADER = "Inference-Header-Content-Length"
PIXELS, FILES = "image", "image_bytes"  # names of the inputs


class _Input(BaseModel):
    name: str = Field(max_length=256)
    shape: list[int] = Field(max_length=8)
    datatype: str = Field(max_length=16)
    parameters: dict[str, Any] = {}
    data: list[Any] | None = None


class _Output(BaseModel):
    name: str = Field(max_length=256)
    parameters: dict[str, Any] = {}


class _Body(BaseModel):
    id: str | None = Field(default=None, max_length=256)
    parameters: dict[str, Any] = {}
    inputs: list[_Input] = Field(max_length=16)
    outputs: list[_Output] | None = Field(default=None, max_length=1024)


class RequestedOutput(NamedTuple):
    """An output to return, as bytes or as JSON; `top` > 0 returns that many "value:index:label" strings instead."""

    name: str
    binary: bool
    top: int = 0


class InferenceRequest(NamedTuple):
    """A parsed request: either `pixels` [B, S, S, C] uint8, or B encoded image files."""

    id: str | None
    pixels: NDArray[np.uint8] | None
    files: list[bytes]
    outputs: list[RequestedOutput]

    @property
    def batch_size(self) -> int:
        """The number of images B."""
        return len(self.files) if self.pixels is None else len(self.pixels)


class OutputTensor(NamedTuple):
    """An output: an array of FP32, or a list of bytes with the datatype BYTES."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: NDArray[Any] | list[bytes]


def parse_request(
    body: bytes, json_length: str | None, *, size: int, channels: int, max_batch: int, outputs: Collection[str]
) -> InferenceRequest:
    """Parse the body of an inference request.

    Args:
        body: JSON, and binary tensors behind it.
        json_length: the header Inference-Header-Content-Length; None where all of the body is JSON.
        size: side S of the model's input in pixels.
        channels: its channels C.
        max_batch: maximum number of images.
        outputs: names of the model's outputs.

    Raises:
        HTTPException: status 400 for anything that does not conform to the protocol, 422 for too many images.
    """
    text, binary_data = _split_body(body, json_length)
    try:
        message = _Body.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        location = ".".join(map(str, first["loc"]))
        raise HTTPException(400, f"invalid request: {location + ': ' if location else ''}{first['msg']}") from None
    if len(message.inputs) != 1:
        raise HTTPException(400, f"{len(message.inputs)} inputs; give exactly one, {PIXELS!r} or {FILES!r}")
    tensor = message.inputs[0]
    data = _binary_input(tensor, binary_data)
    requested = _requested_outputs(message, outputs)
    pixels, files = None, []
    if tensor.datatype == "UINT8" and tensor.name == PIXELS:
        pixels = _parse_pixels(tensor, data, (size, size, channels), max_batch)
    elif tensor.datatype == "BYTES" and tensor.name in (PIXELS, FILES):
        files = _parse_files(tensor, data, max_batch)
    else:
        raise HTTPException(
            400,
            f"unsupported input {tensor.name!r} of type {tensor.datatype}; "
            f"use {PIXELS!r} UINT8 [B, {size}, {size}, {channels}] or {FILES!r} BYTES [B]",
        )
    return InferenceRequest(message.id, pixels, files, requested)


def encode_response(
    model: str, request: InferenceRequest, tensors: Sequence[OutputTensor], classes: Mapping[str, Sequence[str]]
) -> tuple[bytes, int | None]:
    """Encode the requested outputs.

    Args:
        model: name of the model.
        request: the request.
        tensors: all outputs of the model.
        classes: output -> class names, for "value:index:label" strings.

    Returns:
        The body, and the length of its JSON if binary tensors follow it.

    Raises:
        HTTPException: status 400 where `classification` is requested of an output that is text.
    """
    available = {tensor.name: tensor for tensor in tensors}
    entries, blobs = [], []
    for output in request.outputs:
        tensor = available[output.name]
        if output.top:
            tensor = _classify(tensor, output.top, classes)
        entry: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        if output.binary:
            blobs.append(_to_bytes(tensor.values))
            entry["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            entry["data"] = _to_list(tensor.values)
        entries.append(entry)
    message: dict[str, Any] = {"model_name": model, "model_version": "1", "outputs": entries}
    if request.id is not None:
        message["id"] = request.id
    text = json.dumps(message, ensure_ascii=False).encode()
    return (b"".join([text, *blobs]), len(text)) if blobs else (text, None)


def _split_body(body: bytes, json_length: str | None) -> tuple[bytes, bytes]:
    if json_length is None:
        return body, b""
    if not re.fullmatch(r"[0-9]{1,12}", json_length) or int(json_length) > len(body):
        raise HTTPException(400, f"{LENGTH_HEADER} must be a number of bytes within the body")
    return body[: int(json_length)], body[int(json_length) :]


def _requested_outputs(message: _Body, available: Collection[str]) -> list[RequestedOutput]:
    default = _bool_parameter(message.parameters, "binary_data_output", False)
    if not message.outputs:
        return [RequestedOutput(name, default) for name in available]
    names = [output.name for output in message.outputs]
    unknown = next((name for name in names if name not in available), None)
    if unknown is not None:
        raise HTTPException(400, f"unknown output {unknown!r}; available: {', '.join(available)}")
    if len(set(names)) < len(names):  # a thousand copies of one output would fill the memory
        raise HTTPException(400, "an output is requested twice")
    requested = []
    for output in message.outputs:
        top = output.parameters.get("classification", 0)
        if isinstance(top, bool) or not isinstance(top, int) or not 0 <= top <= 100_000:
            raise HTTPException(400, "parameter 'classification' must be an integer from 0 to 100000")
        requested.append(RequestedOutput(output.name, _bool_parameter(output.parameters, "binary_data", default), top))
    return requested


def _bool_parameter(parameters: Mapping[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise HTTPException(400, f"parameter {name!r} must be true or false")
    return value


def _binary_input(tensor: _Input, binary_data: bytes) -> bytes | None:
    """The input's bytes behind the JSON; None where its data is in the JSON."""
    if "binary_data_size" not in tensor.parameters:
        if binary_data:
            raise HTTPException(400, f"{len(binary_data)} bytes follow the JSON, but no input has a binary_data_size")
        if tensor.data is None:
            raise HTTPException(400, f"input {tensor.name!r} has neither data nor a binary_data_size")
        return None
    size = tensor.parameters["binary_data_size"]
    if isinstance(size, bool) or not isinstance(size, int) or size != len(binary_data) or tensor.data is not None:
        raise HTTPException(
            400, f"input {tensor.name!r}: binary_data_size must equal the {len(binary_data)} bytes after the JSON"
        )
    return binary_data


def _check_batch(count: int, max_batch: int) -> None:
    if count > max_batch:
        raise HTTPException(422, f"{count} images in one request; the limit is {max_batch}")


def _parse_pixels(tensor: _Input, data: bytes | None, image: tuple[int, ...], max_batch: int) -> NDArray[np.uint8]:
    shape = tuple(tensor.shape)
    if len(shape) != 4 or shape[1:] != image or shape[0] < 1:
        expected = ", ".join(map(str, image))
        raise HTTPException(
            400, f"input {tensor.name!r}: shape {tensor.shape} must be [B, {expected}] with B at least 1"
        )
    _check_batch(shape[0], max_batch)
    if data is None:
        data = _bytes_of_numbers(tensor)
    count = math.prod(shape)
    if len(data) != count:
        raise HTTPException(400, f"input {tensor.name!r}: shape {tensor.shape} needs {count} values, got {len(data)}")
    return np.frombuffer(data, np.uint8).reshape(shape).copy()  # torch needs it writable


def _bytes_of_numbers(tensor: _Input) -> bytes:
    """The numbers of JSON data, flat or nested like the shape. Not by np.array: one long string among the numbers would
    make every element as long.
    """
    values = tensor.data or []
    if values and isinstance(values[0], list):
        for size in tensor.shape[1:]:
            if not all(isinstance(row, list) and len(row) == size for row in values):
                raise HTTPException(400, f"input {tensor.name!r}: data is neither flat nor nested like its shape")
            values = [value for row in values for value in row]
    try:
        if set(map(type, values)) <= {int}:  # bytes() accepts booleans too
            return bytes(values)
    except ValueError:
        pass
    raise HTTPException(400, f"input {tensor.name!r}: UINT8 values are integers from 0 to 255")


def _parse_files(tensor: _Input, data: bytes | None, max_batch: int) -> list[bytes]:
    shape = tensor.shape
    if not shape or len(shape) > 2 or shape[1:] not in ([], [1]) or shape[0] < 1:
        raise HTTPException(400, f"input {tensor.name!r}: shape {shape} must be [B] or [B, 1] with B at least 1")
    _check_batch(shape[0], max_batch)
    files = _split_elements(tensor, data) if data is not None else _decode_base64(tensor)
    if len(files) != shape[0]:
        raise HTTPException(400, f"input {tensor.name!r}: shape {shape} does not match the number of elements")
    return files


def _decode_base64(tensor: _Input) -> list[bytes]:
    elements = [element for row in tensor.data or [] for element in (row if isinstance(row, list) else [row])]
    try:
        return [base64.b64decode(element, validate=True) for element in elements]
    except (binascii.Error, TypeError, ValueError):
        raise HTTPException(400, f"input {tensor.name!r}: BYTES elements in JSON are base64 strings") from None


def _split_elements(tensor: _Input, data: bytes) -> list[bytes]:
    """The elements of a binary BYTES tensor, at most one more than its shape has."""
    elements: list[bytes] = []
    start = 0
    while start < len(data) and len(elements) <= tensor.shape[0]:
        stop = start + 4 + int.from_bytes(data[start : start + 4], "little")
        if start + 4 > len(data) or stop > len(data):
            raise HTTPException(400, f"input {tensor.name!r}: an element exceeds the binary data")
        elements.append(data[start + 4 : stop])
        start = stop
    return elements


def _to_bytes(values: NDArray[Any] | list[bytes]) -> bytes:
    if isinstance(values, list):
        return b"".join(len(value).to_bytes(4, "little") + value for value in values)
    return np.ascontiguousarray(values).tobytes()


def _to_list(values: NDArray[Any] | list[bytes]) -> list[Any]:
    if isinstance(values, list):
        return [value.decode("utf-8", "replace") for value in values]
    return values.ravel().tolist()


def _classify(tensor: OutputTensor, top: int, classes: Mapping[str, Sequence[str]]) -> OutputTensor:
    """Triton's classification extension: the `top` largest values of each row as "value:index:label"."""
    if isinstance(tensor.values, list):
        raise HTTPException(400, f"output {tensor.name!r} is text; classification needs numbers")
    top, labels = min(top, tensor.shape[1]), classes[tensor.name]
    order = np.argsort(-tensor.values, axis=1, kind="stable")[:, :top]
    strings = [
        f"{row[k]:f}:{k}:{labels[k]}".encode() for row, best in zip(tensor.values, order, strict=True) for k in best
    ]
    return OutputTensor(tensor.name, "BYTES", (tensor.shape[0], top), strings)
