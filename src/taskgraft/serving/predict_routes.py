"""Routes for people: an image to /predict, the page at /, what the model is, and metrics."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from importlib import resources
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from taskgraft.report import theme
from taskgraft.serving import batching, metrics, service
from taskgraft.serving.limits import Refusal
from taskgraft.serving.model import Reading
from taskgraft.serving.schemas import Choice, Picture, Predicted, TaskAnswer, refusals
from taskgraft.serving.service import Service

FILES = {"page.html": "text/html", "page.css": "text/css", "page.js": "text/javascript"}
FIELDS = 16  # text fields of a form, all of which are passed over
LARGE = 65_536  # bytes from which reading a form is left to a thread


def routes(found: Service) -> APIRouter:
    """/predict, /about, /metrics, and the page."""
    router = APIRouter(tags=["people"])
    page = {name: (resources.files("taskgraft.serving") / "page" / name).read_text(encoding="utf-8") for name in FILES}
    page["page.css"] = theme.sheet(page["page.css"])  # the looks of every page of taskgraft

    @router.post("/predict", **_documented())
    async def predict(request: Request, top: Annotated[int, Query(ge=1, le=100)] = 5) -> Predicted:
        """Every task's answer for an image (the body itself) or several (a form with files)."""
        with service.under_way(found):
            return await _predict(found, request, top)

    @router.get("/about", responses=refusals())
    async def about() -> dict[str, Any]:
        """The model's tasks, lineage and results."""
        return found.served.about

    @router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}, **refusals()})
    async def prometheus() -> Response:
        """Numbers for Prometheus."""
        return Response(metrics.page(found.gauges), media_type="text/plain; version=0.0.4; charset=utf-8")

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
    async with service.body_of(found, request) as body:
        start = time.perf_counter()
        if not body:
            raise Refusal(400, "the body is empty; send an image")
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
    reading = _parsed(request, body, found.limits.max_batch)
    try:
        form = await (asyncio.to_thread(asyncio.run, reading) if len(body) > LARGE else reading)
    except (MultiPartException, ValueError, LookupError) as error:
        reason = error.message if isinstance(error, MultiPartException) else "it is damaged"
        raise Refusal(400, f"the form cannot be read: {reason}") from None
    if not form:
        raise Refusal(400, "the form holds no file")
    return form


async def _parsed(request: Request, body: bytes, most: int) -> list[tuple[str | None, bytes]]:
    """The files of a form. It never waits: all of it is in memory and stays there, no image touches the disk."""

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    parser = MultiPartParser(request.headers, stream(), max_files=most, max_fields=FIELDS)
    parser.spool_max_size = len(body) + 1
    form = await parser.parse()
    uploads = [entry for _, entry in form.multi_items() if isinstance(entry, UploadFile)]
    files = [(_written(upload.filename), await upload.read()) for upload in uploads]
    await form.close()
    return files


def _written(name: str | None) -> str | None:
    """A file's name as JSON can hold it: some of the codecs that a form may name give what is no Unicode text."""
    return None if name is None else name.encode("utf-8", "replace").decode()


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
