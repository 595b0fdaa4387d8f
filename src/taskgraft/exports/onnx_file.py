"""ONNX: `model.onnx`, run by onnxruntime; also what the Triton repository and the OpenVINO files are made of."""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from taskgraft.bundle import Bundle
from taskgraft.exports import graph, quantize
from taskgraft.exports.signature import Order, describe, input_name, outputs

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx

FILE = "model.onnx"


def write(bundle: Bundle, order: Order, folder: Path, calibration: NDArray[Any] | None) -> None:
    """Write `model.onnx`; int8-static needs `calibration` [N, …], inputs as the graph takes them."""
    if order.precision == "fp32":
        save(bundle, order, folder / FILE)
        return
    with tempfile.TemporaryDirectory() as aside:
        whole = Path(aside) / FILE
        save(bundle, order, whole)
        quantize.write(whole, folder / FILE, order, calibration)


def save(bundle: Bundle, order: Order, file: Path) -> None:
    """Write the float32 graph to one file, with its description in the metadata."""
    import onnx

    program = graph.capture(bundle, uint8=order.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own deprecated parts
        made = torch.onnx.export(
            program, (), dynamo=True, verbose=False, input_names=[input_name(order)],
            output_names=[out.name for out in outputs(bundle)],
        )  # fmt: skip
    assert made is not None
    model = made.model_proto
    _clean(model)
    entry = model.metadata_props.add()
    entry.key, entry.value = "taskgraft", json.dumps(describe(bundle, order), ensure_ascii=False)
    onnx.checker.check_model(model)
    onnx.save_model(model, os.fspath(file))


def opened(file: Path) -> Callable[[NDArray[Any]], list[NDArray[np.float32]]]:
    """A function from inputs [B, …] to the logits [B, K] of each task, in a fresh onnxruntime session on the CPU."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3  # errors alone; the rest is advice to onnxruntime's own developers
    settings.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(os.fspath(file), settings, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda inputs: [np.asarray(value) for value in session.run(None, {name: inputs})]


def reopen(folder: Path) -> Callable[[NDArray[Any]], list[NDArray[np.float32]]]:
    """The exported folder in its own runtime."""
    return opened(folder / FILE)


def _clean(model: onnx.ModelProto) -> None:
    """Call the batch "batch", and leave out the notes of the exporter: they hold paths of this machine."""
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
