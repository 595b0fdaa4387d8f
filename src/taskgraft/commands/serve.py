"""A model opened and put behind HTTP."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from taskgraft.bundle import Bundle, open_parent
from taskgraft.errors import require
from taskgraft.serving.limits import Limits, checked
from taskgraft.types import Callbacks, PathLike

NEEDS = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")


def serve(
    model: PathLike,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    insecure: bool = False,
    backend: str = "torch",
    name: str | None = None,
    limits: Limits = Limits(),  # noqa: B008 - immutable
    trial: bool = False,
    arch: str | None = None,
    labels: PathLike | None = None,
    preprocessing: str | None = None,
    parent_task: str = "parent",
    callbacks: Callbacks = Callbacks(),  # noqa: B008 - immutable
) -> dict[str, Any]:
    """Serve `model` until SIGTERM or SIGINT; returns what was served.

    `trial` opens everything, answers one grey image through the whole path, and returns. Raises TaskgraftError for bad
    settings, a model that cannot be opened, or a port that is taken, before anybody is answered.
    """
    require("serve", *NEEDS, what="serving")
    from taskgraft.serving import model as models
    from taskgraft.serving import server

    checked(limits)
    local = server.admit(host, token, insecure=insecure)
    door = server.listen(host, port)
    with door, ThreadPoolExecutor(1, "model") as thread:
        opened = thread.submit(
            open_parent, model, arch=arch, labels=labels, preprocessing=preprocessing, task=parent_task
        )
        bundle = opened.result()
        for found in bundle.found:
            callbacks.info(f"model: {found}")
        served = thread.submit(models.load, bundle, backend, name, thread).result()
        if trial:
            asyncio.run(_try(served, bundle, limits))
        else:
            callbacks.info(f"serving {served.name} ({backend}): tasks {', '.join(served.labels)}")
            server.serve(served, bundle.preprocessing, limits, door, token=token, local=local, callbacks=callbacks)
    return served.about


async def _try(served: Any, bundle: Bundle, limits: Limits) -> None:
    """One grey image as a client sends it: decoded by a worker, answered by the model."""
    import io

    from PIL import Image

    from taskgraft.serving import service

    file = io.BytesIO()
    Image.new("RGB", (64, 64), "grey").save(file, "PNG")
    found = service.assemble(served, bundle.preprocessing, limits)
    async with service.running(found):
        await service.read(found, await service.pixels_of(found, [file.getvalue()]))
