"""Routes of the Open Inference Protocol V2, so that `tritonclient[http]` and other clients of it work unchanged."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Path, Request, Response

from taskgraft.serving import batching, service, v2_protocol
from taskgraft.serving.limits import Refusal
from taskgraft.serving.model import Reading, Served
from taskgraft.serving.schemas import ModelMetadata, Ready, ServerMetadata, TensorMetadata, refusals
from taskgraft.serving.service import Service
from taskgraft.serving.v2_protocol import HEADER, Tensor
from taskgraft.version import __version__

VERSION = "1"
Name = Annotated[str, Path(max_length=256)]
LARGE = 65_536  # bytes from which reading a request is left to a thread


def routes(found: Service) -> APIRouter:
    """Metadata, health and inference. There is one model with one version, and no way to load another."""
    router = APIRouter(tags=["Open Inference Protocol V2"])
    served = found.served

    @router.get("/v2")
    async def server() -> ServerMetadata:
        """Who serves, and which extensions of the v2_protocol."""
        return ServerMetadata(
            name="taskgraft", version=__version__, extensions=["binary_tensor_data", "classification"]
        )

    @router.get("/v2/health/live", response_class=Response, responses={200: {"content": {}}})
    async def live() -> Response:
        """200 as long as the process answers."""
        return Response()

    @router.get("/v2/health/ready", response_class=Response, responses={200: {"content": {}}, **refusals(503)})
    async def ready() -> Response:
        """200 while requests are taken, 503 once the server is stopping."""
        _awake(found)
        return Response()

    @router.get("/v2/models/{name}", responses=refusals(404))
    @router.get(f"/v2/models/{{name}}/versions/{VERSION}", responses=refusals(404))
    async def metadata(name: Name) -> ModelMetadata:
        """Inputs and outputs. Of the inputs exactly one is to be given."""
        _known(served, name)
        return described(found)

    @router.get("/v2/models/{name}/ready", responses=refusals(404, 503))
    @router.get(f"/v2/models/{{name}}/versions/{VERSION}/ready", responses=refusals(404, 503))
    async def model_ready(name: Name) -> Ready:
        """200 while the model takes requests."""
        _known(served, name)
        _awake(found)
        return Ready(name=served.name, ready=True)

    @router.post("/v2/models/{name}/infer", **_documented())
    @router.post(f"/v2/models/{{name}}/versions/{VERSION}/infer", **_documented())
    async def infer(name: Name, request: Request) -> Response:
        """Pixels or encoded images in, logits, probabilities and labels of every task out."""
        _known(served, name)
        with service.under_way(found):
            return await _infer(found, request)

    return router


def described(found: Service) -> ModelMetadata:
    """The model as the protocol describes one."""
    served, size = found.served, found.served.size
    outputs = []
    for task, classes in served.labels.items():
        more = {"task": task, "classes": list(classes), "temperature": served.temperatures[task]}
        logits, shares, label = _names(served, task)
        outputs += [
            TensorMetadata(name=logits, datatype="FP32", shape=[-1, len(classes)], parameters=more),
            TensorMetadata(name=shares, datatype="FP32", shape=[-1, len(classes)], parameters={"task": task}),
            TensorMetadata(name=label, datatype="BYTES", shape=[-1], parameters={"task": task}),
        ]
    pixels = {"meaning": "RGB pixels at the model's size, rows from the top", "instead_of": v2_protocol.ENCODED}
    encoded = {"meaning": "encoded images (JPEG, PNG, …); base64 in JSON", "instead_of": v2_protocol.PIXELS}
    return ModelMetadata(
        name=served.name,
        versions=[VERSION],
        platform="taskgraft",
        inputs=[
            TensorMetadata(name=v2_protocol.PIXELS, datatype="UINT8", shape=[-1, size, size, 3], parameters=pixels),
            TensorMetadata(name=v2_protocol.ENCODED, datatype="BYTES", shape=[-1], parameters=encoded),
        ],
        outputs=outputs,
        parameters={
            "inputs": "exactly one",
            "preprocessing": served.about["preprocessing"],
            "max_batch_size": found.limits.max_batch,
        },
    )


async def _infer(found: Service, request: Request) -> Response:
    limits, served = found.limits, found.served
    async with service.body_of(found, request) as body:
        read = (body, request.headers.get(HEADER), served.size, limits.max_batch)
        asked = await asyncio.to_thread(v2_protocol.parse, *read) if len(body) > LARGE else v2_protocol.parse(*read)
        _check_names(served, asked)
        count = len(asked.pictures) if asked.pixels is None else len(asked.pixels)
        with batching.admitted(found.waiting, count):
            pixels = await service.pixels_of(found, asked.pictures) if asked.pixels is None else asked.pixels
            readings = await service.read(found, pixels)
    tensors = [tensor for task, reading in readings.items() for tensor in _tensors(served, task, reading)]
    labels = {name: served.labels[task] for task in served.labels for name in _names(served, task)}
    content, length = v2_protocol.answer(served.name, asked, tensors, labels)
    if length is None:
        return Response(content, media_type="application/json")
    return Response(content, media_type="application/octet-stream", headers={HEADER: str(length)})


def _tensors(served: Served, task: str, reading: Reading) -> tuple[Tensor, Tensor, Tensor]:
    logits, shares, label = _names(served, task)
    shape = reading.logits.shape
    texts = [(name or "").encode() for name in reading.labels]
    return (
        Tensor(logits, "FP32", shape, np.asarray(reading.logits, np.float32)),
        Tensor(shares, "FP32", shape, reading.probabilities),
        Tensor(label, "BYTES", shape[:1], texts),
    )


def _names(served: Served, task: str) -> tuple[str, str, str]:
    """What a task's outputs are called."""
    logits = served.outputs[task]
    rest = logits.removeprefix("logits_")
    return logits, f"probabilities_{rest}", f"label_{rest}"


def _check_names(served: Served, asked: v2_protocol.Request) -> None:
    """Unknown outputs are turned away before anything is computed."""
    known = {name for task in served.labels for name in _names(served, task)}
    for wanted in asked.outputs or ():
        if wanted.name not in known:
            raise Refusal(400, f"no output {wanted.name!r}; the model has {', '.join(sorted(known))}")


def _known(served: Served, name: str) -> None:
    if name != served.name:
        raise Refusal(404, f"no such model; there is one, {served.name!r}")


def _awake(found: Service) -> None:
    if found.state["draining"]:
        raise Refusal(503, "the server is stopping; ask another one", retry=5)


def _documented() -> dict[str, Any]:
    """What FastAPI cannot see, since the route reads its body itself."""
    tensor = {
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
    wanted = {"type": "object", "required": ["name"], "properties": {"name": {"type": "string", "maxLength": 256}}}
    schema = {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string", "maxLength": 256},
            "parameters": {"type": "object"},
            "inputs": {"type": "array", "items": tensor, "minItems": 1, "maxItems": 1},
            "outputs": {"type": "array", "items": wanted},
        },
    }
    binary = {"schema": {"type": "string", "format": "binary"}}
    tensors = {"application/json": {"schema": {"type": "object"}}, "application/octet-stream": binary}
    return {
        "response_class": Response,
        "responses": {
            200: {"description": "outputs", "content": tensors},
            **refusals(400, 404, 408, 413, 415, 422, 429, 503),
        },
        "openapi_extra": {
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": schema}, "application/octet-stream": binary},
            },
            "parameters": [{
                "name": HEADER, "in": "header", "required": False, "schema": {"type": "integer", "minimum": 0},
                "description": "bytes of JSON before the binary tensors",
            }],
        },
    }  # fmt: skip
