"""OpenVINO: `model.xml` and `model.bin`, made from the ONNX graph and kept in float32."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskgraft.bundle import Bundle
from taskgraft.exports import onnx_file
from taskgraft.exports.signature import Order, describe

FILE = "model.xml"


def write(bundle: Bundle, order: Order, folder: Path, calibration: NDArray[Any] | None) -> None:
    """Write `model.xml` and `model.bin`, the description under rt_info/taskgraft."""
    import openvino

    with tempfile.TemporaryDirectory() as aside:
        onnx_file.write(bundle, order, Path(aside), calibration)
        model = openvino.Core().read_model(os.fspath(Path(aside) / onnx_file.FILE))
        model.set_rt_info(json.dumps(describe(bundle, order), ensure_ascii=False), "taskgraft")
        openvino.save_model(model, os.fspath(folder / FILE), compress_to_fp16=False)


def reopen(folder: Path) -> Callable[[NDArray[Any]], list[NDArray[np.float32]]]:
    """A function from inputs [B, …] to the logits [B, K] of each task."""
    import openvino

    # on CPUs with bf16 units OpenVINO would otherwise compute in bf16
    model = openvino.Core().compile_model(os.fspath(folder / FILE), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(inputs: NDArray[Any]) -> list[NDArray[np.float32]]:
        found = model([inputs])
        return [np.array(found[port]) for port in model.outputs]

    return run
