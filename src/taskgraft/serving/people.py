"""Routes for people: a picture to /predict, the page at /, what the model is, and metrics."""

from __future__ import annotations

import asyncio
import time
from importlib import resources
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from taskgraft.serving import batching, gauges, service
from taskgraft.serving.answers import Choice, Picture, Predicted, TaskAnswer, refusals
from taskgraft.serving.limits import Refusal
from taskgraft.serving.model import Reading
from taskgraft.serving.service import Service

FILES = {"page.html": "text/html", "page.css": "text/css", "page.js": "text/javascript"}
FIELDS = 16  # text fields of a form, all of which are passed over


def routes(found: Service) -> APIRouter:
    """/predict, /about, /metrics, and the page."""
    router = APIRouter(tags=["people"])
    page = {name: (resources.files("taskgraft.serving") / "page" / name).read_bytes() for name in FILES}

    @router.post("/predict", **_documented())
    async def predict(request: Request, top: Annotated[int, Query(ge=1, le=100)] = 5) -> Predicted:
        """Every task's answer for a picture (the body itself) or several (a form with files)."""
        with service.under_way(found):
            return await _predict(found, request, top)

    @router.get("/about", responses=refusals())
    async def about() -> dict[str, Any]:
        """The model's tasks, lineage and results."""
        return found.served.about

    @router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}, **refusals()})
    async def metrics() -> Response:
        """Numbers for Prometheus."""
        return Response(gauges.page(found.gauges), media_type="text/plain; version=0.0.4; charset=utf-8")

    @router.get("/", include_in_schema=False)
    async def start() -> Response:
        return Response(page["page.html"], media_type=FILES["page.html"])

    @router.get("/page/{name}", include_in_schema=False)
    async def asset(name: str) -> Response:
        if name not in FILES:
            raise Refusal(404, "no such file")
        return Response(page[name], media_type=FILES[name])

    return router


async def _predict(found: Service, request: Request, top: int) -> Predicted:
    body = await service.body_of(found, request)
    start = time.perf_counter()
    if not body:
        raise Refusal(400, "the body is empty; send a picture")
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    files = await _files(found, request, body) if kind == "multipart/form-data" else [(None, body)]
    with batching.admitted(found.waiting, len(files)):
        pixels = await service.pixels_of(found, [picture for _, picture in files])
        readings = await service.read(found, pixels)
    return Predicted(
        model=found.served.name,
        pictures=[
            Picture(
                name=name,
                tasks={
                    task: _answer(reading, row, found.served.labels[task], top) for task, reading in readings.items()
                },
            )
            for row, (name, _) in enumerate(files)
        ],
        seconds=round(time.perf_counter() - start, 6),
    )


def _answer(reading: Reading, row: int, classes: tuple[str, ...], top: int) -> TaskAnswer:
    shares = reading.probabilities[row]
    order = (-shares).argsort(kind="stable")[:top]
    label = reading.labels[row]
    best = shares[classes.index(label)] if label is not None else shares[order[0]]
    choices = [Choice(label=classes[k], probability=float(shares[k])) for k in order]
    return TaskAnswer(label=label, probability=float(best), top=choices)


async def _files(found: Service, request: Request, body: bytes) -> list[tuple[str | None, bytes]]:
    """The files of a form, in order; text fields are passed over. Raises Refusal for none, or too many parts."""

    async def stream():
        yield body

    try:
        form = await MultiPartParser(
            request.headers, stream(), max_files=found.limits.max_batch, max_fields=FIELDS
        ).parse()
    except (MultiPartException, ValueError, KeyError, LookupError) as error:
        reason = error.message if isinstance(error, MultiPartException) else "it is damaged"
        raise Refusal(400, f"the form cannot be read: {reason}") from None
    uploads = [entry for _, entry in form.multi_items() if isinstance(entry, UploadFile)]
    try:
        files = [(upload.filename, await upload.read()) for upload in uploads]
    finally:
        await asyncio.gather(*(upload.close() for upload in uploads))
    if not files:
        raise Refusal(400, "the form holds no file")
    return files


def _documented() -> dict[str, Any]:
    """What FastAPI cannot see, since the route reads its body itself."""
    binary = {"type": "string", "format": "binary"}
    form = {"type": "object", "properties": {"file": {"type": "array", "items": binary, "minItems": 1}}}
    content = {
        "image/*": {"schema": binary},
        "application/octet-stream": {"schema": binary},
        "multipart/form-data": {"schema": form},
    }
    return {
        "responses": refusals(400, 408, 413, 415, 422, 429, 503),
        "openapi_extra": {"requestBody": {"required": True, "content": content}},
    }
