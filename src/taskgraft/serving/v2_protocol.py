"""The Open Inference Protocol V2: bytes of a request -> tensors, tensors -> bytes of an answer. Pure functions.

JSON, and the binary tensor extension: the header Inference-Header-Content-Length says how many bytes of the body are
JSON; the tensors follow in order, each as long as its `binary_data_size`. BYTES tensors are elements of 4 bytes of
length (little endian) and the bytes themselves; in JSON they are base64.
Source: https://github.com/kserve/open-inference-protocol and Triton's extension_binary_data.md.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError

from taskgraft.serving.limits import Refusal

HEADER = "Inference-Header-Content-Length"
PIXELS, ENCODED = "image", "image_bytes"


class _Given(BaseModel):
    name: str = Field(max_length=256)
    shape: list[int] = Field(max_length=8)
    datatype: str = Field(max_length=16)
    parameters: dict[str, Any] = {}
    data: list[Any] | None = None


class _Wanted(BaseModel):
    name: str = Field(max_length=256)
    parameters: dict[str, Any] = {}


class _Asked(BaseModel):
    id: str | None = Field(default=None, max_length=256)
    parameters: dict[str, Any] = {}
    inputs: list[_Given] = Field(max_length=16)
    outputs: list[_Wanted] | None = Field(default=None, max_length=1024)


class Wanted(NamedTuple):
    """An output that is asked for: as bytes or as JSON; `top` > 0 = as that many "value:index:label" strings."""

    name: str
    binary: bool
    top: int


class Request(NamedTuple):
    """One request: `pixels` [B, S, S, 3] uint8, or `images`, B encoded files; `outputs` None = all of them."""

    id: str | None
    pixels: NDArray[np.uint8] | None
    pictures: list[bytes]
    outputs: list[Wanted] | None
    binary: bool  # how outputs are sent that are not listed


class Tensor(NamedTuple):
    """An output: numbers, or strings in BYTES."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: NDArray[Any] | list[bytes]


def parse(body: bytes, header: str | None, size: int, most: int) -> Request:
    """Read a request for a model of `size` pixels; raises Refusal 400 for whatever does not fit the protocol."""
    text, rest = _parts(body, header)
    try:
        asked = _Asked.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise Refusal(400, f"not an inference request: {place + ': ' if place else ''}{first['msg']}") from None
    if len(asked.inputs) != 1:
        raise Refusal(400, f"{len(asked.inputs)} inputs; give one, {PIXELS!r} or {ENCODED!r}")
    given = asked.inputs[0]
    raw = _binary(given, rest)
    binary = _flag(asked.parameters, "binary_data_output", False)
    wanted = None if asked.outputs is None else [_output(entry, binary) for entry in asked.outputs]
    names = [entry.name for entry in wanted or ()]
    if len(set(names)) < len(names):  # a thousand times the same answer is a way to fill the memory
        raise Refusal(400, "an output is asked for twice; once is enough")
    start = Request(asked.id, None, [], wanted, binary)
    if given.datatype == "UINT8" and given.name == PIXELS:
        return start._replace(pixels=_pixels(given, raw, size, most))
    if given.datatype == "BYTES" and given.name in (PIXELS, ENCODED):
        return start._replace(pictures=_pictures(given, raw, most))
    raise Refusal(
        400,
        f"input {given.name!r} {given.datatype}: give {PIXELS!r} UINT8 [B, {size}, {size}, 3] or {ENCODED!r} BYTES [B]",
    )


def answer(
    model: str, request: Request, tensors: Sequence[Tensor], labels: Mapping[str, Sequence[str]]
) -> tuple[bytes, int | None]:
    """The body and, where it has binary parts, the length of its JSON. `labels` output -> class names, for `top`.

    Raises Refusal 400 for an output that the model lacks.
    """
    known = {tensor.name: tensor for tensor in tensors}
    wanted = request.outputs or [Wanted(name, request.binary, 0) for name in known]
    described, blobs = [], []
    for entry in wanted:
        if entry.name not in known:
            raise Refusal(400, f"no output {entry.name!r}; the model has {', '.join(known)}")
        tensor = _top(known[entry.name], entry.top, labels) if entry.top else known[entry.name]
        shown: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        if entry.binary:
            blob = _packed(tensor.values)
            shown["parameters"] = {"binary_data_size": len(blob)}
            blobs.append(blob)
        else:
            shown["data"] = _listed(tensor.values)
        described.append(shown)
    head: dict[str, Any] = {"model_name": model, "model_version": "1", "outputs": described}
    if request.id is not None:
        head["id"] = request.id
    text = json.dumps(head, ensure_ascii=False).encode()
    return (b"".join([text, *blobs]), len(text)) if blobs else (text, None)


def _parts(body: bytes, header: str | None) -> tuple[bytes, bytes]:
    if header is None:
        return body, b""
    if not re.fullmatch(r"[0-9]{1,12}", header) or int(header) > len(body):
        raise Refusal(400, f"{HEADER} must be a number of bytes within the body")
    return body[: int(header)], body[int(header) :]


def _flag(parameters: Mapping[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise Refusal(400, f"parameter {name!r} must be true or false")
    return value


def _output(entry: _Wanted, binary: bool) -> Wanted:
    top = entry.parameters.get("classification", 0)
    if isinstance(top, bool) or not isinstance(top, int) or not 0 <= top <= 100_000:
        raise Refusal(400, "parameter 'classification' must be a whole number, 0 or more")
    return Wanted(entry.name, _flag(entry.parameters, "binary_data", binary), top)


def _binary(given: _Given, rest: bytes) -> bytes | None:
    """The input's bytes behind the JSON; None where its data is in the JSON."""
    if "binary_data_size" not in given.parameters:
        if rest:
            raise Refusal(400, f"{len(rest)} bytes follow the JSON, but no input has a binary_data_size")
        if given.data is None:
            raise Refusal(400, f"input {given.name!r} has neither data nor a binary_data_size")
        return None
    size = given.parameters["binary_data_size"]
    if isinstance(size, bool) or not isinstance(size, int) or size != len(rest) or given.data is not None:
        raise Refusal(400, f"input {given.name!r}: binary_data_size must be the {len(rest)} bytes behind the JSON")
    return rest


def _pixels(given: _Given, raw: bytes | None, size: int, most: int) -> NDArray[np.uint8]:
    shape = tuple(given.shape)
    if len(shape) != 4 or shape[1:] != (size, size, 3) or shape[0] < 1:
        raise Refusal(400, f"input {given.name!r}: shape {given.shape} must be [B, {size}, {size}, 3], B at least 1")
    if shape[0] > most:
        raise Refusal(422, f"{shape[0]} images in one request; at most {most} are taken")
    count = shape[0] * size * size * 3
    if raw is None:
        raw = _listed_bytes(given, shape)
    if len(raw) != count:
        raise Refusal(400, f"input {given.name!r}: shape {given.shape} needs {count} values, {len(raw)} came")
    return np.frombuffer(raw, np.uint8).reshape(shape).copy()  # torch wants it writable


def _listed_bytes(given: _Given, shape: tuple[int, ...]) -> bytes:
    """The numbers of JSON data, flat or nested like its shape. No array is made of what else may stand there: one long
    text among numbers would make every entry as long.
    """
    values = given.data or []
    if values and isinstance(values[0], list):
        for size in shape[1:]:
            if not all(isinstance(row, list) and len(row) == size for row in values):
                raise Refusal(400, f"input {given.name!r}: data is neither flat nor nested like its shape")
            values = [value for row in values for value in row]
    try:
        if set(map(type, values)) <= {int}:  # bytes() would take true and false too
            return bytes(values)
    except ValueError:
        pass
    raise Refusal(400, f"input {given.name!r}: UINT8 takes whole numbers from 0 to 255")


def _pictures(given: _Given, raw: bytes | None, most: int) -> list[bytes]:
    shape = given.shape
    if not shape or len(shape) > 2 or shape[1:] not in ([], [1]) or shape[0] < 1:
        raise Refusal(400, f"input {given.name!r}: shape {shape} must be [B] or [B, 1], B at least 1")
    if shape[0] > most:
        raise Refusal(422, f"{shape[0]} images in one request; at most {most} are taken")
    return _from_text(given, shape[0]) if raw is None else _from_bytes(given.name, raw, shape[0])


def _from_text(given: _Given, count: int) -> list[bytes]:
    flat = [entry for row in given.data or [] for entry in (row if isinstance(row, list) else [row])]
    if len(flat) != count:
        raise Refusal(400, f"input {given.name!r}: shape {given.shape}, but {len(flat)} elements came")
    try:
        return [base64.b64decode(entry, validate=True) for entry in flat]
    except (binascii.Error, TypeError, ValueError):
        raise Refusal(400, f"input {given.name!r}: in JSON, BYTES are strings of base64") from None


def _from_bytes(name: str, raw: bytes, count: int) -> list[bytes]:
    found, start = [], 0
    while start < len(raw) and len(found) <= count:
        stop = start + 4 + int.from_bytes(raw[start : start + 4], "little")
        if start + 4 > len(raw) or stop > len(raw):
            raise Refusal(400, f"input {name!r}: an element is longer than the bytes that came")
        found.append(raw[start + 4 : stop])
        start = stop
    if len(found) != count:
        raise Refusal(400, f"input {name!r}: its shape has {count} elements, but {len(found)} or more came")
    return found


def _packed(values: NDArray[Any] | list[bytes]) -> bytes:
    if isinstance(values, list):
        return b"".join(len(value).to_bytes(4, "little") + value for value in values)
    return np.ascontiguousarray(values).tobytes()


def _listed(values: NDArray[Any] | list[bytes]) -> list[Any]:
    if isinstance(values, list):
        return [value.decode("utf-8", "replace") for value in values]
    return values.ravel().tolist()


def _top(tensor: Tensor, count: int, labels: Mapping[str, Sequence[str]]) -> Tensor:
    """Triton's classification extension: the `count` largest values of each row as "value:index:label"."""
    if isinstance(tensor.values, list):
        raise Refusal(400, f"output {tensor.name!r} is text already; classification is of numbers")
    count, names = min(count, tensor.shape[1]), labels[tensor.name]
    order = np.argsort(-tensor.values, axis=1, kind="stable")[:, :count]
    found = [
        f"{row[k]:f}:{k}:{names[k]}".encode() for row, best in zip(tensor.values, order, strict=True) for k in best
    ]
    return Tensor(tensor.name, "BYTES", (tensor.shape[0], count), found)
