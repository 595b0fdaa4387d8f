"""JSON bodies of responses: what FastAPI validates and the OpenAPI document describes."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


class Error(BaseModel):
    """Why a request failed."""

    error: str


class ClassProbability(BaseModel):
    """A class and its probability."""

    label: str
    probability: float


class TaskResult(BaseModel):
    """The prediction of one task; `label` is null where a joint softmax prefers a class of another task."""

    label: str | None
    probability: float
    top: list[ClassProbability]


class ImageResult(BaseModel):
    """The predictions of every task for one image."""

    name: str | None
    tasks: dict[str, TaskResult]


class PredictResponse(BaseModel):
    """Response of /predict: images in the order of the request, and seconds from the complete body to the response."""

    model: str
    images: list[ImageResult]
    seconds: float


class ServerMetadata(BaseModel):
    """Open Inference Protocol: the server."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    """Open Inference Protocol: one input or output; -1 is the batch."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Any] = {}


class ModelMetadata(BaseModel):
    """Open Inference Protocol: one model. A request gives exactly one of the inputs."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
    parameters: dict[str, Any]


class ModelReady(BaseModel):
    """Open Inference Protocol: whether a model accepts requests."""

    name: str
    ready: bool


STATUS_DESCRIPTIONS = {
    400: "invalid request",
    401: "missing or wrong token",
    403: "foreign origin or host",
    404: "unknown model",
    408: "the body did not arrive in time",
    413: "the body is too large",
    415: "unsupported Content-Encoding or Content-Type",
    422: "an image cannot be used, or there are too many",
    429: "too many images are waiting; see Retry-After",
    503: "the server is shutting down or too slow; see Retry-After",
}
_TENSOR = {
    "type": "object",
    "required": ["name", "shape", "datatype"],
    "properties": {
        "name": {"type": "string", "maxLength": 256},
        "shape": {"type": "array", "items": {"type": "integer"}, "maxItems": 8},
        "datatype": {"type": "string", "enum": ["UINT8", "BYTES"]},
        "parameters": {"type": "object"},
        "data": {"type": "array"},
    },
}
_OUTPUT = {"type": "object", "required": ["name"], "properties": {"name": {"type": "string", "maxLength": 256}}}
INFERENCE_REQUEST = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string", "maxLength": 256},
        "parameters": {"type": "object"},
        "inputs": {"type": "array", "items": _TENSOR, "minItems": 1, "maxItems": 1},
        "outputs": {"type": "array", "items": _OUTPUT},
    },
}
BINARY = {"type": "string", "format": "binary"}
IMAGE_FORM = {"type": "object", "properties": {"file": {"type": "array", "items": BINARY, "minItems": 1}}}


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` argument of a route that may return these statuses, or 401 and 403 as all do."""
    return {status: {"model": Error, "description": STATUS_DESCRIPTIONS[status]} for status in (401, 403, *statuses)}


def request_body(**schemas: dict[str, Any]) -> dict[str, Any]:
    """The `openapi_extra` of a route that reads its body itself, by media type."""
    content = {media_type: {"schema": schema} for media_type, schema in schemas.items()}
    return {"requestBody": {"required": True, "content": content}}
