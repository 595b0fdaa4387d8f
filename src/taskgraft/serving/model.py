"""The model that a server asks: a function of pixels, and what a client may know of it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from taskgraft import data, exports, metrics
from taskgraft.allocator import keep_freed_memory
from taskgraft.bundle import Bundle
from taskgraft.errors import InputError, ResultError
from taskgraft.exports import onnx_file, sample_images, verify
from taskgraft.exports.signature import Order, outputs, plain_name
from taskgraft.results.predictions import Predictions
from taskgraft.results.record import Record, parsed
from taskgraft.types import Images
from taskgraft.version import __version__

BACKENDS = ("torch", "onnx")

Answer = dict[str, NDArray[np.float32]]  # task -> logits [B, K]
Run = Callable[[NDArray[np.uint8]], Answer]  # pixels [B, S, S, 3] -> logits


class Served(NamedTuple):
    """One model under its name. `labels` task -> classes, `temperatures` task -> T, `outputs` task -> logits_TASK.

    `thread` runs the model, and had best loaded it: every thread that asks torch for parallel work gets helpers of its
    own, and with two such sets on the same cores each operation waits for helpers to wake (13 ms an image, not 5).
    """

    name: str
    run: Run
    size: int
    softmax: str
    labels: dict[str, tuple[str, ...]]
    temperatures: dict[str, float]
    outputs: dict[str, str]
    about: dict[str, Any]
    thread: ThreadPoolExecutor


class Reading(NamedTuple):
    """A task's logits [B, K], calibrated probabilities [B, K] and labels [B] (None: lost to another task)."""

    logits: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    labels: list[str | None]


def load(bundle: Bundle, backend: str, name: str | None, thread: ThreadPoolExecutor | None = None) -> Served:
    """Make a model ready to be asked, in `thread` (a new one if left out).

    Raises TaskgraftError for an unknown backend, or one whose answers differ.
    """
    if backend not in BACKENDS:
        raise InputError(f"--backend {backend!r}: give one of {', '.join(BACKENDS)}")
    run = _torch(bundle) if backend == "torch" else _onnx(bundle)
    found = outputs(bundle)
    called = plain_name(name or Path(bundle.source).name, "model")
    return Served(
        called,
        run,
        bundle.preprocessing.size,
        bundle.classifier.softmax,
        {out.task: out.classes for out in found},
        {out.task: out.temperature for out in found},
        {out.task: out.name for out in found},
        about(bundle, called, backend),
        thread or ThreadPoolExecutor(1, "model"),
    )


def read(served: Served, logits: Answer) -> dict[str, Reading]:
    """What the logits say, task by task."""
    count = len(next(iter(logits.values())))
    whole = Predictions(served.labels, served.softmax, ("",) * count, {}, logits)
    readings = {}
    for task, classes in served.labels.items():
        shares = metrics.probabilities(logits[task], served.temperatures[task]).astype(np.float32)
        chosen = metrics.predicted_classes(whole, task)
        readings[task] = Reading(logits[task], shares, [classes[row] if row >= 0 else None for row in chosen])
    return readings


def about(bundle: Bundle, name: str, backend: str) -> dict[str, Any]:
    """What the page shows: tasks, lineage, results. Of paths only their last part."""
    file = bundle.home / "record.json" if bundle.home else None
    record = parsed(Record, file) if file and file.is_file() else None
    return {
        "name": name,
        "made_by": f"taskgraft {__version__}",
        "backend": backend,
        "architecture": bundle.arch,
        "preprocessing": bundle.preprocessing.to_text(),
        "softmax": bundle.classifier.softmax,
        "tasks": [
            {"name": out.task, "output": out.name, "classes": list(out.classes), "temperature": out.temperature}
            for out in outputs(bundle)
        ],
        "lineage": [_ancestor(entry) for entry in bundle.lineage],
        "results": [_result(task.model_dump()) for task in record.tasks] if record else [],
        "notes": list(record.notes) if record else [],
    }


def _ancestor(entry: dict[str, Any]) -> dict[str, Any]:
    parent = entry.get("parent", {})
    return {
        "parent": Path(str(parent.get("source", "unknown"))).name,
        "architecture": parent.get("architecture"),
        "had": parent.get("tasks", []),
        "learnt": entry.get("task"),
        "method": entry.get("method"),
        "accuracy": entry.get("accuracy", {}),
    }


def _result(task: dict[str, Any]) -> dict[str, Any]:
    names = {"parent": "before", "child": "now", "forgetting": "forgetting", "agreement": "agreement"}
    return {"task": task["name"], "new": task["new"], **{shown: task[key] for key, shown in names.items()}}


def _torch(bundle: Bundle) -> Run:
    keep_freed_memory()
    classifier, preprocessing = bundle.classifier.eval(), bundle.preprocessing
    device = next(classifier.parameters()).device

    def run(pixels: NDArray[np.uint8]) -> Answer:
        images = Images(torch.from_numpy(pixels), {}, (), preprocessing.mean, preprocessing.std)
        with torch.inference_mode():
            found = classifier(data.normalize(images, 0, len(pixels)).to(device))
        return {task: logits.float().cpu().numpy() for task, logits in found.items()}

    return run


def _onnx(bundle: Bundle) -> Run:
    """ONNX Runtime on a file made for the occasion, compared with the model before anybody asks it."""
    order = Order("onnx", uint8=True)
    exports.chosen(order)
    with tempfile.TemporaryDirectory() as folder:
        onnx_file.save(bundle, order, Path(folder) / onnx_file.FILE)
        ask = onnx_file.reopen(Path(folder))
    checks = verify.compare(bundle.classifier, sample_images.synthetic(bundle), ask, uint8=True)
    refused = verify.refusal(checks, "fp32")
    if refused:
        raise ResultError(f"--backend onnx answers differently than the model: {refused}; use --backend torch")
    tasks = [task.name for task in bundle.classifier.tasks]
    return lambda pixels: dict(zip(tasks, ask(pixels), strict=True))
