"""The ASGI application: routes, error answers, and an OpenAPI document that says what they take and give."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from taskgraft.serving import middleware, predict_routes, service, v2_routes
from taskgraft.serving.limits import Refusal
from taskgraft.serving.service import Service
from taskgraft.version import __version__


def create(found: Service, *, token: str | None = None, local: bool = True) -> middleware.App:
    """The application for a service. `local`: only localhost may be named as the host, unless there is a token."""

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        async with service.running(found):
            yield

    app = FastAPI(
        title=f"taskgraft: {found.served.name}",
        version=__version__,
        description="One image classifier with several tasks. Open Inference Protocol V2, and /predict for an image.",
        docs_url=None,
        redoc_url=None,
        lifespan=life,
        redirect_slashes=False,
        exception_handlers={
            Refusal: _refusal,
            HTTPException: _http,
            RequestValidationError: _validation,
            Exception: _crash,
        },
    )
    app.include_router(v2_routes.routes(found))
    app.include_router(predict_routes.routes(found))
    if token:
        app.openapi = _with_token(app)  # pyright: ignore[reportAttributeAccessIssue] - as FastAPI's manual says
    return middleware.guarded(app, found, token=token, local=local)


async def _refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    headers = {"Retry-After": str(error.retry)} if error.retry else None
    return JSONResponse({"error": error.message}, error.status, headers)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)


async def _validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first: dict[str, Any] = error.errors()[0]
    return JSONResponse({"error": f"{'.'.join(map(str, first['loc']))}: {first['msg']}"}, 422)


async def _crash(request: Request, error: Exception) -> Response:
    """The guard logs what happened; the client is told nothing of it."""
    return JSONResponse({"error": "internal error; the server's log has more"}, 500)


def _with_token(app: FastAPI) -> Any:
    """FastAPI's own document, with the token that every route but the open ones asks for."""
    plain = app.openapi

    def document() -> dict[str, Any]:
        made = plain()
        made.setdefault("components", {})["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        for path, routes in made["paths"].items():
            for route in routes.values():
                if path != "/" and not path.startswith(middleware.OPEN[1:]):
                    route["security"] = [{"token": []}]
        return made

    return document
