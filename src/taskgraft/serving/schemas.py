"""The shapes of JSON answers: what FastAPI checks and the OpenAPI document shows."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


class Error(BaseModel):
    """Why a request was turned away."""

    error: str


class ServerMetadata(BaseModel):
    """Of the Open Inference Protocol: who serves."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    """Of the Open Inference Protocol: one input or output; -1 is the batch."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Any] = {}


class ModelMetadata(BaseModel):
    """Of the Open Inference Protocol: one model. Of the inputs exactly one is to be given."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
    parameters: dict[str, Any]


class Ready(BaseModel):
    """Of the Open Inference Protocol: whether a model takes requests."""

    name: str
    ready: bool


class Choice(BaseModel):
    """A class and its probability."""

    label: str
    probability: float


class TaskAnswer(BaseModel):
    """One task: its answer (None where a joint softmax gave it to another task) and the likeliest classes."""

    label: str | None
    probability: float
    top: list[Choice]


class Picture(BaseModel):
    """One image: the answer of each task."""

    name: str | None
    tasks: dict[str, TaskAnswer]


class Predicted(BaseModel):
    """The answer of /predict: images in the order they came, and seconds from the whole body to the answer."""

    model: str
    pictures: list[Picture]
    seconds: float


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that may turn a request away."""
    words = {
        400: "the request is not understood",
        401: "the token is missing or wrong",
        403: "a foreign origin or host",
        404: "no such model",
        408: "the body did not come in time",
        413: "the body is too large",
        415: "an unknown Content-Encoding or Content-Type",
        422: "an image cannot be used, or there are too many",
        429: "too many images are waiting; see Retry-After",
        503: "the server is stopping or too slow; see Retry-After",
    }
    return {status: {"model": Error, "description": words[status]} for status in (401, 403, *statuses)}
