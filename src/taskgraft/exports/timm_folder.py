"""safetensors: a folder that plain timm loads as one classifier, old classes, then new ones; and a model card."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from taskgraft import bundle as bundles
from taskgraft import data, report
from taskgraft.bundle import Bundle, structure
from taskgraft.errors import InputError
from taskgraft.exports.signature import Order, plain_name
from taskgraft.models.classifier import merge_heads
from taskgraft.results.files import write_text
from taskgraft.results.record import Record, parsed
from taskgraft.types import Images


def write(bundle: Bundle, order: Order, folder: Path, calibration: NDArray[Any] | None) -> None:
    """Write config.json, model.safetensors, cards/ and README.md; raises TaskgraftError for what timm cannot rebuild."""
    if len(bundle.classifier.extras):
        kinds = dict.fromkeys(shape.kind for shape in structure.extras(bundle.classifier))
        raise InputError(
            "plain timm cannot rebuild this model: it is more than one linear layer on one backbone "
            f"(beside it: {' and '.join(kinds)}); export it with --format onnx, pt2, openvino or triton, "
            "or extend with a method that leaves one backbone, such as --method distill"
        )
    made = _made(bundle)
    bundles.write(folder, bundle._replace(memory={}), method=made["method"], parent=made["parent"])
    write_text(folder / "README.md", card(bundle))


def reopen(folder: Path) -> Callable[[NDArray[Any]], list[NDArray[np.float32]]]:
    """A function from images [B, 3, S, S] to the logits [B, K] of each task, by plain timm."""
    net = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    tasks = json.loads((folder / "config.json").read_text(encoding="utf-8"))["taskgraft"]["tasks"]

    def run(inputs: NDArray[Any]) -> list[NDArray[np.float32]]:
        with torch.inference_mode():
            joint = net(torch.from_numpy(inputs)).numpy()
        return [joint[:, slice(*task["range"])] for task in tasks]

    return run


def bit_equal(bundle: Bundle, folder: Path, images: Images, size: int = 32) -> bool:
    """Whether plain timm gives the same bits as the model with all its heads multiplied as one layer.

    One by one, as taskgraft multiplies them, heads may differ from a joint product in the last bit.
    """
    net = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    classifier = bundle.classifier.eval()
    weight, bias = merge_heads(classifier)
    with torch.inference_mode():
        for first in range(0, len(images.pixels), size):
            batch = data.normalize(images, first, first + size)
            if not torch.equal(net(batch), F.linear(classifier.features(batch), weight, bias)):
                return False
    return True


def card(bundle: Bundle) -> str:
    """The model card with what model hubs read: one result for each measured task, before and after."""
    from huggingface_hub import EvalResult, ModelCardData

    record = _record(bundle)
    if record is None:
        names = ", ".join(task.name for task in bundle.classifier.tasks)
        data_of = ModelCardData(library_name="timm", pipeline_tag="image-classification", tags=["timm", "taskgraft"])
        text = f"# {bundle.arch}\n\nA classifier with the tasks {names}. It was not made by an extension."
        return f"---\n{data_of.to_yaml()}\n---\n\n{text}\n"
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=plain_name(task.name, "task"),  # results of one type are merged
            dataset_name=f"validation images of {task.name}",
            metric_type="accuracy",
            metric_name=f"accuracy, {when}",
            metric_value=round(share.mean, 6),
        )
        for task in record.tasks
        for when, share in (("before", task.parent), ("now", task.child))
        if share is not None
    ]
    metadata = ModelCardData(
        library_name="timm",
        pipeline_tag="image-classification",
        tags=["image-classification", "timm", "taskgraft"],
        model_name=" + ".join(task.name for task in record.tasks) if results else None,
        eval_results=results or None,
    )
    body = report.model_card(record).split("---\n", 2)[2]
    return f"---\n{metadata.to_yaml()}\n---\n{body}"


def _made(bundle: Bundle) -> dict[str, Any]:
    """How the model was made, as its config.json says it."""
    if bundle.home is None:
        return {"method": "none", "parent": {"source": Path(bundle.source).name, "digest": bundle.digest}}
    return json.loads((bundle.home / "config.json").read_text(encoding="utf-8"))["taskgraft"]


def _record(bundle: Bundle) -> Record | None:
    file = bundle.home / "record.json" if bundle.home else None
    return parsed(Record, file) if file and file.is_file() else None
