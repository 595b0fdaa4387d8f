"""safetensors: a folder that plain timm loads as one classifier, old classes before new ones, with a model card."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from taskgraft import bundle as bundles
from taskgraft import data, report
from taskgraft.bundle import Bundle, architecture
from taskgraft.errors import InputError
from taskgraft.exports.signature import ExportConfig, Runner, clean_name, read_record
from taskgraft.models.classifier import merge_heads
from taskgraft.results.files import write_text
from taskgraft.types import Images


def write(bundle: Bundle, config: ExportConfig, folder: Path, calibration: NDArray[Any] | None = None) -> None:
    """Write config.json, model.safetensors, cards/ and README.md.

    Raises:
        InputError: the model is more than a timm backbone and a linear layer.
    """
    if len(bundle.classifier.extras):
        kinds = dict.fromkeys(architecture.describe_extra(extra).kind for extra in bundle.classifier.extras)
        raise InputError(
            f"timm cannot load this model, which has a {' and a '.join(kinds)} in addition to its backbone; use "
            "--format onnx, pt2, openvino or triton, or extend with a method that keeps a single backbone"
        )
    origin: dict[str, Any] = {"method": "none", "parent": {"source": Path(bundle.source).name, "digest": bundle.digest}}
    if bundle.folder is not None:
        origin = json.loads((bundle.folder / "config.json").read_text(encoding="utf-8"))["taskgraft"]
    bundles.write_bundle(folder, replace(bundle, memory={}), method=origin["method"], parent=origin["parent"])
    write_text(folder / "README.md", format_model_card(bundle))


def load(folder: Path) -> Runner:
    """Load the folder with timm alone."""
    net = _load_timm(folder)
    tasks = json.loads((folder / "config.json").read_text(encoding="utf-8"))["taskgraft"]["tasks"]

    def run(inputs: NDArray[Any]) -> list[NDArray[np.float32]]:
        with torch.inference_mode():
            joint = net(torch.from_numpy(inputs)).numpy()
        return [joint[:, slice(*task["range"])] for task in tasks]

    return run


def is_bit_identical(bundle: Bundle, folder: Path, images: Images, batch_size: int = 32) -> bool:
    """Whether timm gives the same bits as the model with its heads multiplied as one layer.

    Multiplied one by one, as taskgraft does it, heads may differ in the last bit.
    """
    net = _load_timm(folder)
    classifier = bundle.classifier.eval()
    weight, bias = merge_heads(classifier)
    with torch.inference_mode():
        for start in range(0, len(images.pixels), batch_size):
            batch = data.normalize(images, start, start + batch_size)
            if not torch.equal(net(batch), F.linear(classifier.features(batch), weight, bias)):
                return False
    return True


def format_model_card(bundle: Bundle) -> str:
    """The model card, with metadata for model hubs: the accuracy on each task, before and after."""
    from huggingface_hub import EvalResult, ModelCardData

    record = read_record(bundle)
    if record is None:
        tasks = ", ".join(task.name for task in bundle.classifier.tasks)
        metadata = ModelCardData(library_name="timm", pipeline_tag="image-classification", tags=["timm", "taskgraft"])
        body = f"\n# {bundle.arch}\n\nAn image classifier for: {tasks}. It was not trained by taskgraft.\n"
        return f"---\n{metadata.to_yaml()}\n---\n{body}"
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=clean_name(task.name, "task"),  # results of the same type are merged
            dataset_name=f"validation images of {task.name}",
            metric_type="accuracy",
            metric_name=f"accuracy, {when}",
            metric_value=round(accuracy.mean, 6),
        )
        for task in record.tasks
        for when, accuracy in (("before", task.parent), ("after", task.child))
        if accuracy is not None
    ]
    metadata = ModelCardData(
        library_name="timm",
        pipeline_tag="image-classification",
        tags=["image-classification", "timm", "taskgraft"],
        model_name=" + ".join(task.name for task in record.tasks) if results else None,
        eval_results=results or None,
    )
    body = report.format_model_card(record).split("---\n", 2)[2]  # without its metadata
    return f"---\n{metadata.to_yaml()}\n---\n{body}"


def _load_timm(folder: Path) -> torch.nn.Module:
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
