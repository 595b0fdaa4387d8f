"""What every exported file shares: names of inputs and outputs, and a description of how to use it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from taskgraft.bundle import Bundle
from taskgraft.data.transforms import CHANNELS
from taskgraft.results.record import Record, load_record
from taskgraft.version import __version__

FORMAT_VERSION = 1

Runner = Callable[[NDArray[Any]], list[NDArray[np.float32]]]  # inputs [B, …] -> logits [B, K] of each task in order


class ExportConfig(NamedTuple):
    """How a model is exported; `uint8` puts the normalization into the graph, `name` is for model servers."""

    format: str
    precision: str = "fp32"
    uint8: bool = False
    name: str = "model"

    @property
    def input_name(self) -> str:
        """`image` takes uint8 pixels, `pixel_values` normalized floats."""
        return "image" if self.uint8 else "pixel_values"


class Output(NamedTuple):
    """The output of one task."""

    task: str
    name: str
    classes: tuple[str, ...]
    temperature: float


def clean_name(text: str, default: str) -> str:
    """Reduce a name to ASCII letters, digits and underscores, which every runtime accepts."""
    return re.sub(r"[^A-Za-z0-9_]+", "_", text).strip("_") or default


def name_outputs(tasks: Sequence[str]) -> list[str]:
    """`logits_TASK` for each task, numbered where cleaned names coincide."""
    names: list[str] = []
    for task in tasks:
        base = f"logits_{clean_name(task, 'task')}"
        name, count = base, 2
        while name in names:
            name, count = f"{base}_{count}", count + 1
        names.append(name)
    return names


def describe_outputs(bundle: Bundle) -> list[Output]:
    """The outputs in the order of the tasks."""
    tasks = bundle.classifier.tasks
    names = name_outputs([task.name for task in tasks])
    return [
        Output(task.name, name, task.classes, bundle.temperature(task)) for task, name in zip(tasks, names, strict=True)
    ]


def describe(bundle: Bundle, config: ExportConfig) -> dict[str, Any]:
    """Describe an exported file in JSON values: all one needs to use it without taskgraft."""
    preprocessing, size = bundle.preprocessing, bundle.preprocessing.size
    channels, colors = preprocessing.channels, CHANNELS[preprocessing.channels]
    return {
        "format": FORMAT_VERSION,
        "made_by": f"taskgraft {__version__}",
        "architecture": bundle.arch,
        "weights_sha256": bundle.digest,
        "precision": config.precision,
        "input": {
            "name": config.input_name,
            "type": "uint8" if config.uint8 else "float32",
            "shape": ["batch", size, size, channels] if config.uint8 else ["batch", channels, size, size],
            "meaning": f"{colors} pixels, top row first" if config.uint8 else f"({colors} / 255 - mean) / std",
        },
        "preprocessing": {
            **preprocessing._asdict(),
            "line": preprocessing.to_text(),
            "normalized_inside": config.uint8,
        },
        "softmax": bundle.classifier.softmax,
        "outputs": [
            {
                "name": out.name,
                "task": out.task,
                "type": "float32",
                "shape": ["batch", len(out.classes)],
                "meaning": "logits; probabilities are softmax(logits / temperature)",
                "temperature": out.temperature,
                "classes": list(out.classes),
            }
            for out in describe_outputs(bundle)
        ],
    }


def read_record(bundle: Bundle) -> Record | None:
    """The record of the run that produced a bundle; None for a model from elsewhere."""
    file = bundle.folder / "record.json" if bundle.folder else None
    return load_record(Record, file) if file and file.is_file() else None
