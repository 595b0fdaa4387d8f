"""The web application: its routes, and an OpenAPI document that describes what they take and return."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from importlib import resources
from typing import Annotated, Any

import numpy as np
import prometheus_client
from fastapi import APIRouter, FastAPI, Path, Query, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser

from taskgraft.data.transforms import CHANNELS
from taskgraft.report import theme
from taskgraft.serving import schemas, v2_protocol
from taskgraft.serving.middleware import Guard, error_response
from taskgraft.serving.model import ServedModel, TaskPrediction
from taskgraft.serving.schemas import error_responses
from taskgraft.serving.service import Service
from taskgraft.serving.v2_protocol import FILES, LENGTH_HEADER, PIXELS, OutputTensor
from taskgraft.version import __version__

MODEL_VERSION = "1"
PAGE_FILES = {"page.html": "text/html", "page.css": "text/css", "page.js": "text/javascript"}
MAX_FORM_FIELDS = 16  # text fields of a form, which are ignored
LARGE_BODY = 65_536  # bytes from which a body is parsed in a thread
PREDICTION_ERRORS = (400, 408, 413, 415, 422, 429, 503)

ModelName = Annotated[str, Path(max_length=256)]


def create_app(service: Service, *, token: str | None = None, local_only: bool = True) -> FastAPI:
    """Build the ASGI application of a service, whose lifespan processes the queue.

    Args:
        service: the model and everything that requests share.
        token: what clients must send as a bearer token; None = no authentication.
        local_only: without a token, accept only requests that name localhost as their host.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    app = FastAPI(
        title=f"taskgraft: {service.model.name}",
        version=__version__,
        description="An image classifier with several tasks: Open Inference Protocol V2, and /predict for images.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
        exception_handlers={HTTPException: _handle_http_error, RequestValidationError: _handle_validation_error},
    )
    app.add_middleware(Guard, service=service, token=token, local_only=local_only)
    # only documents the token: the middleware also protects paths that no route has
    authenticated = [Security(HTTPBearer(scheme_name="token", auto_error=False))] if token else []
    app.include_router(_public_routes(service))
    app.include_router(_predict_routes(service), dependencies=authenticated)
    app.include_router(_v2_routes(service), dependencies=authenticated)
    return app


async def _handle_http_error(request: Request, error: Any) -> Response:
    return error_response(error.status_code, error.detail, error.headers)


async def _handle_validation_error(request: Request, error: Any) -> Response:
    first = error.errors()[0]
    return error_response(422, f"{'.'.join(map(str, first['loc']))}: {first['msg']}")


def _public_routes(service: Service) -> APIRouter:
    """Health checks and the web page."""
    router = APIRouter()
    folder = resources.files("taskgraft.serving") / "page"
    page = {name: (folder / name).read_text(encoding="utf-8") for name in PAGE_FILES}
    page["page.css"] = theme.build_style_sheet(page["page.css"])  # after the style sheet of all pages of taskgraft
    health: dict[str, Any] = {"response_class": Response, "tags": ["Open Inference Protocol V2"]}

    @router.get("/v2/health/live", **health, responses={200: {"content": {}}})
    async def live() -> Response:
        """200 as long as the process responds."""
        return Response()

    @router.get("/v2/health/ready", **health, responses={200: {"content": {}}, **error_responses(503)})
    async def ready() -> Response:
        """200 while requests are accepted, 503 once the server is shutting down."""
        service.check_ready()
        return Response()

    @router.get("/", include_in_schema=False)
    @router.get("/page/{name}", include_in_schema=False)
    async def page_file(name: str = "page.html") -> Response:
        if name not in PAGE_FILES:
            raise HTTPException(404, "no such file")
        return Response(page[name], media_type=PAGE_FILES[name])

    return router


def _predict_routes(service: Service) -> APIRouter:
    """/predict, /about and /metrics."""
    router = APIRouter(tags=["taskgraft"])
    body = {"image/*": schemas.BINARY, "application/octet-stream": schemas.BINARY,
            "multipart/form-data": schemas.IMAGE_FORM}  # fmt: skip

    @router.post("/predict", responses=error_responses(*PREDICTION_ERRORS), openapi_extra=schemas.request_body(**body))
    async def predict(request: Request, top: Annotated[int, Query(ge=1, le=100)] = 5) -> schemas.PredictResponse:
        """Predict every task for one image (the body) or several (a form with files)."""
        with service.track_request():
            return await _predict(service, request, top)

    @router.get("/about", responses=error_responses())
    async def about() -> dict[str, Any]:
        """Tasks, lineage and results of the model."""
        return service.model.about

    @router.get("/metrics", response_class=Response,
                responses={200: {"content": {"text/plain": {}}}, **error_responses()})  # fmt: skip
    async def metrics() -> Response:
        """Metrics for Prometheus."""
        text = prometheus_client.generate_latest(service.metrics.registry)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    return router


async def _predict(service: Service, request: Request, top: int) -> schemas.PredictResponse:
    async with service.read_body(request) as body:
        start = time.perf_counter()
        if not body:
            raise HTTPException(400, "the body is empty; send an image")
        content_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
        files: list[tuple[str | None, bytes]] = [(None, body)]
        if content_type == "multipart/form-data":
            files = await _parse_form(request, body, service.limits.max_batch)
        with service.batcher.admit(len(files)):
            pixels = await service.decode([data for _, data in files])
            predictions = await service.predict(pixels)
    classes = service.model.classes
    images = [
        schemas.ImageResult(
            name=name,
            tasks={task: _task_result(prediction, row, classes[task], top) for task, prediction in predictions.items()},
        )
        for row, (name, _) in enumerate(files)
    ]
    seconds = round(time.perf_counter() - start, 6)
    return schemas.PredictResponse(model=service.model.name, images=images, seconds=seconds)


def _task_result(prediction: TaskPrediction, row: int, classes: tuple[str, ...], top: int) -> schemas.TaskResult:
    probabilities, label = prediction.probabilities[row], prediction.labels[row]
    order = (-probabilities).argsort(kind="stable")[:top]
    best = order[0] if label is None else classes.index(label)
    return schemas.TaskResult(
        label=label,
        probability=float(probabilities[best]),
        top=[schemas.ClassProbability(label=classes[k], probability=float(probabilities[k])) for k in order],
    )


async def _parse_form(request: Request, body: bytes, max_files: int) -> list[tuple[str | None, bytes]]:
    """Names and contents of the files of a form, in order."""

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    async def parse() -> list[tuple[str | None, bytes]]:
        parser = MultiPartParser(request.headers, stream(), max_files=max_files, max_fields=MAX_FORM_FIELDS)
        parser.spool_max_size = len(body) + 1  # no image is written to the disk
        form = await parser.parse()
        uploads = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
        files = [(upload.filename, await upload.read()) for upload in uploads]
        await form.close()
        return files

    try:  # it never waits, so it may run in a thread with its own event loop
        files = await (asyncio.to_thread(asyncio.run, parse()) if len(body) > LARGE_BODY else parse())
    except (MultiPartException, ValueError, LookupError) as error:
        reason = error.message if isinstance(error, MultiPartException) else "it is malformed"
        raise HTTPException(400, f"cannot read the form: {reason}") from None
    if not files:
        raise HTTPException(400, "the form contains no file")
    # a charset that the form names may yield strings that are not valid Unicode
    return [(name and name.encode("utf-8", "replace").decode(), data) for name, data in files]


def _v2_routes(service: Service) -> APIRouter:
    """Open Inference Protocol V2. There is one model with one version, and no way to load another."""
    router = APIRouter(tags=["Open Inference Protocol V2"])
    model = service.model

    def check_name(name: str) -> None:
        if name != model.name:
            raise HTTPException(404, f"no such model; this server has {model.name!r}")

    @router.get("/v2")
    async def server_metadata() -> schemas.ServerMetadata:
        """The server and the extensions of the protocol that it supports."""
        extensions = ["binary_tensor_data", "classification"]
        return schemas.ServerMetadata(name="taskgraft", version=__version__, extensions=extensions)

    @router.get("/v2/models/{name}", responses=error_responses(404))
    @router.get(f"/v2/models/{{name}}/versions/{MODEL_VERSION}", responses=error_responses(404))
    async def model_metadata(name: ModelName) -> schemas.ModelMetadata:
        """Inputs and outputs; a request gives exactly one of the inputs."""
        check_name(name)
        return _describe_tensors(model, service.limits.max_batch)

    @router.get("/v2/models/{name}/ready", responses=error_responses(404, 503))
    @router.get(f"/v2/models/{{name}}/versions/{MODEL_VERSION}/ready", responses=error_responses(404, 503))
    async def model_ready(name: ModelName) -> schemas.ModelReady:
        """200 while the model accepts requests."""
        check_name(name)
        service.check_ready()
        return schemas.ModelReady(name=model.name, ready=True)

    @router.post("/v2/models/{name}/infer", **_document_infer())
    @router.post(f"/v2/models/{{name}}/versions/{MODEL_VERSION}/infer", **_document_infer())
    async def infer(name: ModelName, request: Request) -> Response:
        """Logits, probabilities and labels of every task for pixels or encoded images."""
        check_name(name)
        with service.track_request():
            return await _infer(service, request)

    return router


async def _infer(service: Service, request: Request) -> Response:
    model = service.model
    task_of = {name: task for task, names in model.outputs.items() for name in names}
    async with service.read_body(request) as body:
        length = request.headers.get(LENGTH_HEADER)
        limits = {
            "size": model.size,
            "channels": model.channels,
            "max_batch": service.limits.max_batch,
            "outputs": task_of,
        }
        if len(body) > LARGE_BODY:
            parsed = await asyncio.to_thread(v2_protocol.parse_request, body, length, **limits)
        else:
            parsed = v2_protocol.parse_request(body, length, **limits)
        with service.batcher.admit(parsed.batch_size):
            pixels = parsed.pixels if parsed.pixels is not None else await service.decode(parsed.files)
            predictions = await service.predict(pixels)
    tensors = []
    for task, prediction in predictions.items():
        names, shape = model.outputs[task], prediction.logits.shape
        labels = [(label or "").encode() for label in prediction.labels]
        tensors += [
            OutputTensor(names.logits, "FP32", shape, prediction.logits.astype(np.float32, copy=False)),
            OutputTensor(names.probabilities, "FP32", shape, prediction.probabilities),
            OutputTensor(names.label, "BYTES", shape[:1], labels),
        ]
    classes = {name: model.classes[task] for name, task in task_of.items()}
    content, length = v2_protocol.encode_response(model.name, parsed, tensors, classes)
    if length is None:
        return Response(content, media_type="application/json")
    return Response(content, media_type="application/octet-stream", headers={LENGTH_HEADER: str(length)})


def _describe_tensors(model: ServedModel, max_batch: int) -> schemas.ModelMetadata:
    shape = [-1, model.size, model.size, model.channels]
    pixels = {
        "meaning": f"{CHANNELS[model.channels]} pixels at the model's input size, top row first",
        "instead_of": FILES,
    }
    files = {"meaning": "encoded images (JPEG, PNG, …); base64 in JSON", "instead_of": PIXELS}
    outputs = []
    for task, classes in model.classes.items():
        names, count = model.outputs[task], len(classes)
        details = {"task": task, "classes": list(classes), "temperature": model.temperatures[task]}
        for name, datatype, sides, parameters in (
            (names.logits, "FP32", [-1, count], details),
            (names.probabilities, "FP32", [-1, count], {"task": task}),
            (names.label, "BYTES", [-1], {"task": task}),
        ):
            outputs.append(schemas.TensorMetadata(name=name, datatype=datatype, shape=sides, parameters=parameters))
    return schemas.ModelMetadata(
        name=model.name,
        versions=[MODEL_VERSION],
        platform="taskgraft",
        inputs=[
            schemas.TensorMetadata(name=PIXELS, datatype="UINT8", shape=shape, parameters=pixels),
            schemas.TensorMetadata(name=FILES, datatype="BYTES", shape=[-1], parameters=files),
        ],
        outputs=outputs,
        parameters={
            "inputs": "exactly one",
            "preprocessing": model.about["preprocessing"],
            "max_batch_size": max_batch,
        },
    )


def _document_infer() -> dict[str, Any]:
    """What FastAPI cannot see, since the route reads its body itself."""
    content = {"application/json": {"schema": {"type": "object"}},
               "application/octet-stream": {"schema": schemas.BINARY}}  # fmt: skip
    body = {"application/json": schemas.INFERENCE_REQUEST, "application/octet-stream": schemas.BINARY}
    header = {
        "name": LENGTH_HEADER, "in": "header", "required": False, "schema": {"type": "integer", "minimum": 0},
        "description": "length of the JSON before the binary tensors in bytes",
    }  # fmt: skip
    return {
        "response_class": Response,
        "responses": {200: {"description": "outputs", "content": content}, **error_responses(404, *PREDICTION_ERRORS)},
        "openapi_extra": {**schemas.request_body(**body), "parameters": [header]},
    }
