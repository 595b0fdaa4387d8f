"""The model behind the server: from pixels to logits, from logits to predictions, and its description for clients."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from taskgraft import data, exports, metrics
from taskgraft.allocator import keep_freed_memory
from taskgraft.bundle import Bundle
from taskgraft.errors import InputError, ResultError
from taskgraft.exports import onnx_file, verify
from taskgraft.exports.signature import ExportConfig, clean_name, describe_outputs, read_record
from taskgraft.results.predictions import Predictions
from taskgraft.types import Images
from taskgraft.version import __version__

BACKENDS = ("torch", "onnx")

Logits = dict[str, NDArray[np.float32]]  # task -> [B, K]
Run = Callable[[NDArray[np.uint8]], Logits]  # pixels [B, S, S, C] -> logits


class TaskPrediction(NamedTuple):
    """Predictions of one task: logits [B, K], calibrated probabilities [B, K], and labels [B].

    A label is None where a joint softmax prefers a class of another task.
    """

    logits: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    labels: list[str | None]


class OutputNames(NamedTuple):
    """The names of a task's three outputs in Open Inference Protocol V2."""

    logits: str
    probabilities: str
    label: str


@dataclass(frozen=True)
class ServedModel:
    """A model ready for requests.

    Attributes:
        name: its name in URLs.
        run: pixels [B, S, S, C] -> logits of each task.
        size: side S of its input in pixels.
        channels: channels C of its input.
        softmax: "per-task" or "joint".
        classes: task -> class names in index order.
        temperatures: task -> temperature of the calibrated softmax.
        outputs: task -> names of its outputs.
        about: what /about returns.
        thread: runs the model, and should have loaded it: each thread that uses torch gets its own OpenMP workers, and
            two sets of them on the same cores slow every operation down (13 ms instead of 5 per image).
    """

    name: str
    run: Run
    size: int
    channels: int
    softmax: str
    classes: dict[str, tuple[str, ...]]
    temperatures: dict[str, float]
    outputs: dict[str, OutputNames]
    about: dict[str, Any]
    thread: ThreadPoolExecutor

    def interpret(self, logits: Logits) -> dict[str, TaskPrediction]:
        """Turn logits into the predictions of every task."""
        names = ("",) * len(next(iter(logits.values())))
        predictions = Predictions(self.classes, self.softmax, names, {}, logits)
        results = {}
        for task, classes in self.classes.items():
            probabilities = metrics.probabilities(logits[task], self.temperatures[task]).astype(np.float32)
            labels = [classes[row] if row >= 0 else None for row in metrics.predicted_classes(predictions, task)]
            results[task] = TaskPrediction(logits[task], probabilities, labels)
        return results


def load_model(
    bundle: Bundle, backend: str, name: str | None = None, thread: ThreadPoolExecutor | None = None
) -> ServedModel:
    """Prepare a model for serving.

    Args:
        bundle: the opened model.
        backend: "torch" or "onnx".
        name: its name in URLs; None takes the last part of the bundle's path.
        thread: the thread that will run the model, best the one that calls this; None starts one.

    Raises:
        InputError: unknown backend.
        ResultError: ONNX Runtime and the model disagree.
    """
    if backend not in BACKENDS:
        raise InputError(f"unknown --backend {backend!r}; available: {', '.join(BACKENDS)}")
    outputs = describe_outputs(bundle)
    name = clean_name(name or Path(bundle.source).name, "model")
    suffixes = {out.task: out.name.removeprefix("logits_") for out in outputs}
    return ServedModel(
        name=name,
        run=_torch_backend(bundle) if backend == "torch" else _onnx_backend(bundle),
        size=bundle.preprocessing.size,
        channels=bundle.preprocessing.channels,
        softmax=bundle.classifier.softmax,
        classes={out.task: out.classes for out in outputs},
        temperatures={out.task: out.temperature for out in outputs},
        outputs={
            task: OutputNames(*(f"{kind}_{end}" for kind in OutputNames._fields)) for task, end in suffixes.items()
        },
        about=describe_model(bundle, name, backend),
        thread=thread or ThreadPoolExecutor(1, "model"),
    )


def describe_model(bundle: Bundle, name: str, backend: str) -> dict[str, Any]:
    """The content of /about: tasks, lineage and results. Of paths it holds only the last part."""
    record = read_record(bundle)
    return {
        "name": name,
        "made_by": f"taskgraft {__version__}",
        "backend": backend,
        "architecture": bundle.arch,
        "preprocessing": bundle.preprocessing.to_text(),
        "softmax": bundle.classifier.softmax,
        "tasks": [
            {"name": out.task, "output": out.name, "classes": list(out.classes), "temperature": out.temperature}
            for out in describe_outputs(bundle)
        ],
        "lineage": [_describe_step(step) for step in bundle.lineage],
        "results": [_describe_result(task.model_dump()) for task in record.tasks] if record else [],
        "notes": list(record.notes) if record else [],
    }


def _describe_step(step: dict[str, Any]) -> dict[str, Any]:
    parent = step.get("parent", {})
    return {
        "parent": Path(str(parent.get("source", "unknown"))).name,
        "architecture": parent.get("architecture"),
        "parent_tasks": parent.get("tasks", []),
        "task": step.get("task"),
        "method": step.get("method"),
        "accuracy": step.get("accuracy", {}),
    }


def _describe_result(task: dict[str, Any]) -> dict[str, Any]:
    return {
        "task": task["name"],
        "new": task["new"],
        "before": task["parent"],
        "after": task["child"],
        "forgetting": task["forgetting"],
        "agreement": task["agreement"],
    }


def _torch_backend(bundle: Bundle) -> Run:
    keep_freed_memory()
    classifier, preprocessing = bundle.classifier.eval(), bundle.preprocessing
    device = next(classifier.parameters()).device

    def run(pixels: NDArray[np.uint8]) -> Logits:
        images = Images(torch.from_numpy(pixels), {}, (), preprocessing.mean, preprocessing.std)
        with torch.inference_mode():
            logits = classifier(data.normalize(images, 0, len(pixels), device))
        return {task: values.float().cpu().numpy() for task, values in logits.items()}

    return run


def _onnx_backend(bundle: Bundle) -> Run:
    """Export to a temporary ONNX file and compare it with the model before anybody uses it."""
    config = ExportConfig("onnx", uint8=True)
    exports.check_format(config)
    with tempfile.TemporaryDirectory() as folder:
        onnx_file.write(bundle, config, Path(folder))
        session = onnx_file.load(Path(folder))
    comparisons = verify.compare(bundle.classifier, verify.synthetic_images(bundle), session, uint8=True)
    difference = verify.find_unacceptable(comparisons, "fp32")
    if difference:
        raise ResultError(f"ONNX Runtime and the model disagree: {difference}; use --backend torch")
    tasks = [task.name for task in bundle.classifier.tasks]
    return lambda pixels: dict(zip(tasks, session(pixels), strict=True))
