"""Serve a model over HTTP."""

from __future__ import annotations

import asyncio
import io
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch

from taskgraft import distributed
from taskgraft.bundle import Bundle, open_parent
from taskgraft.commands.sign import verify_signature
from taskgraft.errors import require
from taskgraft.serving.limits import Limits, validate_limits
from taskgraft.types import Callbacks, PathLike

if TYPE_CHECKING:
    from taskgraft.serving.model import ServedModel

PACKAGES = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")


def serve(
    model: PathLike,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    insecure: bool = False,
    require_signature: PathLike | None = None,
    backend: str = "torch",
    name: str | None = None,
    limits: Limits = Limits(),  # noqa: B008 - immutable
    trial: bool = False,
    arch: str | None = None,
    labels: PathLike | None = None,
    preprocessing: str | None = None,
    parent_task: str | None = None,
    callbacks: Callbacks = Callbacks(),  # noqa: B008 - immutable
) -> dict[str, Any]:
    """Serve a model until SIGTERM or SIGINT.

    Args:
        model: a bundle, or any other model that `extend` accepts.
        host: address to listen on; any that other machines can reach needs a token.
        port: port to listen on; 0 picks a free one.
        token: what clients must send as a bearer token.
        insecure: allow other machines without a token.
        require_signature: public key; only a bundle that its owner signed is opened (see `sign`).
        backend: "torch" or "onnx".
        name: name of the model in URLs; by default the last part of `model`.
        limits: limits on requests.
        trial: smoke test only: load the model, predict one image, return.
        arch: timm architecture of a model that is not a bundle.
        labels: its class names.
        preprocessing: its preprocessing.
        parent_task: name for its task; None = that of its file.
        callbacks: receives the address and notes.

    Returns:
        What /about returns: name, tasks, lineage and results of the model.

    Raises:
        InputError: an illegal option, a weak token, or a public host without one.
        CheckpointError: the model cannot be opened, or its signature is not that of the required key.
        SetupError: the port is in use, or a decoding process did not start.
        MissingDependency: a package that serving needs is not installed.
        ResultError: ONNX Runtime and the model disagree.
    """
    require("serve", *PACKAGES, what="serving")
    from taskgraft.serving.model import load_model
    from taskgraft.serving.server import check_access, open_socket, serve_model

    validate_limits(limits)
    local_only = check_access(host, token, insecure=insecure)
    if require_signature is not None:  # before anything of the model is interpreted
        fingerprint = verify_signature(model, require_signature)
        callbacks.info(f"model: signed by {require_signature} ({fingerprint})")
    with open_socket(host, port) as listener, ThreadPoolExecutor(1, "model") as thread:
        device = distributed.device() if backend == "torch" else torch.device("cpu")  # the choice is of this thread

        def load() -> tuple[Bundle, ServedModel]:
            bundle = open_parent(model, arch=arch, labels=labels, preprocessing=preprocessing, task=parent_task)
            bundle.classifier.to(device)
            return bundle, load_model(bundle, backend, name, thread)

        bundle, served = thread.submit(load).result()
        for note in bundle.notes:
            callbacks.info(f"model: {note}")
        if trial:
            asyncio.run(_predict_one_image(served, bundle, limits))
        else:
            callbacks.info(f"serving {served.name} ({backend} on {device}): tasks {', '.join(served.classes)}")
            serve_model(
                served, bundle.preprocessing, limits, listener, token=token, local_only=local_only, callbacks=callbacks
            )
    return served.about


async def _predict_one_image(served: ServedModel, bundle: Bundle, limits: Limits) -> None:
    """Send a gray image the way of all requests: through a decoding process and the queue."""
    from PIL import Image

    from taskgraft.serving.service import Service

    file = io.BytesIO()
    Image.new("RGB", (64, 64), "gray").save(file, "PNG")
    service = Service(served, bundle.preprocessing, limits)
    async with service.running():
        await service.predict(await service.decode([file.getvalue()]))
