"""OpenVINO: `model.xml` and `model.bin` in float32, converted from the ONNX graph."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskgraft.bundle import Bundle
from taskgraft.exports import onnx_file
from taskgraft.exports.signature import ExportConfig, Runner, describe

FILE = "model.xml"


def write(bundle: Bundle, config: ExportConfig, folder: Path, calibration: NDArray[Any] | None = None) -> None:
    """Write `model.xml` and `model.bin`, with the description under rt_info/taskgraft."""
    import openvino

    with tempfile.TemporaryDirectory() as temporary:
        onnx_file.write(bundle, config, Path(temporary))
        model = openvino.Core().read_model(os.fspath(Path(temporary) / onnx_file.FILE))
        model.set_rt_info(json.dumps(describe(bundle, config), ensure_ascii=False), "taskgraft")
        openvino.save_model(model, os.fspath(folder / FILE), compress_to_fp16=False)


def load(folder: Path) -> Runner:
    """Compile the model for the CPU in float32; OpenVINO would use bf16 where the CPU has it."""
    import openvino

    model = openvino.Core().compile_model(os.fspath(folder / FILE), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(inputs: NDArray[Any]) -> list[NDArray[np.float32]]:
        results = model([inputs])
        return [np.array(results[port]) for port in model.outputs]

    return run
