"""What goes with every exported file: names of inputs and outputs, classes, preprocessing, temperatures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from taskgraft.bundle import Bundle
from taskgraft.version import __version__

FORMAT = 1
NOT_A_NAME = re.compile(r"[^A-Za-z0-9_]+")


class Order(NamedTuple):
    """How a model is to be exported; `name` is what servers call it."""

    format: str
    precision: str = "fp32"
    uint8: bool = False
    name: str = "model"


class Output(NamedTuple):
    """One task's place among a file's outputs."""

    task: str
    name: str
    classes: tuple[str, ...]
    temperature: float


def plain_name(text: str, fallback: str) -> str:
    """Letters, digits and underscores alone: what every runtime accepts as a name."""
    return NOT_A_NAME.sub("_", text).strip("_") or fallback


def output_names(tasks: Sequence[str]) -> tuple[str, ...]:
    """`logits_TASK` for each task; names that would be equal after cleaning get a number."""
    names: list[str] = []
    for task in tasks:
        base = f"logits_{plain_name(task, 'task')}"
        name, count = base, 2
        while name in names:
            name, count = f"{base}_{count}", count + 1
        names.append(name)
    return tuple(names)


def outputs(bundle: Bundle) -> tuple[Output, ...]:
    """The outputs in order. A temperature of 1 means that the task card holds none for just these classes."""
    tasks = bundle.classifier.tasks
    names = output_names([task.name for task in tasks])
    return tuple(
        Output(task.name, name, task.classes, _temperature(bundle.cards.get(task.name, {}), task.classes))
        for task, name in zip(tasks, names, strict=True)
    )


def _temperature(card: dict[str, Any], classes: tuple[str, ...]) -> float:
    return float(card.get("temperature") or 1.0) if list(card.get("classes", ())) == list(classes) else 1.0


def input_name(order: Order) -> str:
    """`image` takes bytes of an image's pixels, `pixel_values` takes normalized numbers."""
    return "image" if order.uint8 else "pixel_values"


def describe(bundle: Bundle, order: Order) -> dict[str, Any]:
    """Plain values for JSON: enough to feed the file and to read its answers without taskgraft."""
    preprocessing, size = bundle.preprocessing, bundle.preprocessing.size
    shape = ["batch", size, size, 3] if order.uint8 else ["batch", 3, size, size]
    return {
        "format": FORMAT,
        "made_by": f"taskgraft {__version__}",
        "architecture": bundle.arch,
        "weights_sha256": bundle.digest,
        "precision": order.precision,
        "input": {
            "name": input_name(order),
            "type": "uint8" if order.uint8 else "float32",
            "shape": shape,
            "meaning": "RGB pixels, rows from the top" if order.uint8 else "(RGB / 255 - mean) / std",
        },
        "preprocessing": {**preprocessing._asdict(), "line": preprocessing.to_text(), "normalized_inside": order.uint8},
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
            for out in outputs(bundle)
        ],
    }
