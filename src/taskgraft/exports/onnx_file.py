"""ONNX: `model.onnx` in float32 or int8, run by ONNX Runtime; Triton and OpenVINO files are made from it."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from taskgraft.bundle import Bundle
from taskgraft.errors import InputError
from taskgraft.exports import torch_export
from taskgraft.exports.signature import ExportConfig, Runner, describe, describe_outputs

if TYPE_CHECKING:
    import onnx

FILE = "model.onnx"
CALIBRATION_BATCH = 16


def write(bundle: Bundle, config: ExportConfig, folder: Path, calibration: NDArray[Any] | None = None) -> None:
    """Write `model.onnx`.

    Args:
        bundle: the model.
        config: how to export it.
        folder: where to write.
        calibration: inputs [N, …] as the graph takes them, on which int8-static measures the ranges of activations.

    Raises:
        InputError: int8-static without calibration images.
    """
    if config.precision == "fp32":
        _write_fp32(bundle, config, folder / FILE)
        return
    from onnxruntime.quantization import quant_pre_process

    with tempfile.TemporaryDirectory() as temporary, _quiet():
        fp32, prepared = Path(temporary) / "fp32.onnx", Path(temporary) / "prepared.onnx"
        _write_fp32(bundle, config, fp32)
        quant_pre_process(os.fspath(fp32), os.fspath(prepared), skip_symbolic_shape=True)
        if config.precision == "int8-dynamic":
            _quantize_dynamic(prepared, folder / FILE)
        elif calibration is None or not len(calibration):
            raise InputError("int8-static needs real images to calibrate on; give --check DATA")
        else:
            _quantize_static(prepared, folder / FILE, config.input_name, calibration)


def load(folder: Path) -> Runner:
    """Open the file in ONNX Runtime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only; warnings are for the developers of ONNX Runtime
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(os.fspath(folder / FILE), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda inputs: [np.asarray(logits) for logits in session.run(None, {name: inputs})]


def _write_fp32(bundle: Bundle, config: ExportConfig, file: Path) -> None:
    """Write the float32 graph, with its description in the metadata."""
    import onnx

    program = torch_export.capture(bundle, uint8=config.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own deprecated parts
        exported = torch.onnx.export(
            program, (), dynamo=True, verbose=False, input_names=[config.input_name],
            output_names=[out.name for out in describe_outputs(bundle)],
        )  # fmt: skip
    assert exported is not None
    model = exported.model_proto
    _strip_metadata(model)
    entry = model.metadata_props.add()
    entry.key, entry.value = "taskgraft", json.dumps(describe(bundle, config), ensure_ascii=False)
    onnx.checker.check_model(model)
    onnx.save_model(model, os.fspath(file))


def _strip_metadata(model: onnx.ModelProto) -> None:
    """Name the batch dimension "batch", and drop the exporter's metadata, which contains paths of this machine."""
    batch = model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == batch:
                dim.dim_param = "batch"
        del value.metadata_props[:]
    for node in (*model.graph.node, *(node for function in model.functions for node in function.node)):
        del node.metadata_props[:]
        node.doc_string = ""
    for part in (*model.graph.initializer, model.graph, model):
        del part.metadata_props[:]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence ONNX Runtime's quantization tools, which both log and warn about their own decisions."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


def _quantize_dynamic(fp32: Path, file: Path) -> None:
    """Quantize linear layers only: with convolutions, EfficientNet-Lite0 lost 2 to 20 points (docs/serving.md)."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        os.fspath(fp32), os.fspath(file), weight_type=QuantType.QInt8, per_channel=True,
        op_types_to_quantize=["MatMul", "Gemm"],
    )  # fmt: skip


def _quantize_static(fp32: Path, file: Path, input_name: str, calibration: NDArray[Any]) -> None:
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):
        batches = iter(np.array_split(calibration, max(1, len(calibration) // CALIBRATION_BATCH)))

        def get_next(self) -> dict[str, NDArray[Any]] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
            batch = next(self.batches, None)
            return None if batch is None else {input_name: batch}

    quantize_static(
        os.fspath(fp32),
        os.fspath(file),
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,  # with one scale for all channels, depthwise layers lose points
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        extra_options={"CalibMovingAverage": True},  # no single outlier sets a range: half the loss of plain MinMax
    )
