"""int8 by onnxruntime: weights alone (dynamic), or weights and activations by the range of real images (static)."""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskgraft.errors import InputError
from taskgraft.exports.signature import Order, input_name

BATCH = 16  # images of a calibration step


def write(whole: Path, file: Path, order: Order, calibration: NDArray[Any] | None) -> None:
    """Quantize the float32 file `whole` into `file`; raises TaskgraftError where static has no images to calibrate on."""
    from onnxruntime.quantization import quant_pre_process

    with tempfile.TemporaryDirectory() as aside, _quiet():
        ready = Path(aside) / "ready.onnx"
        quant_pre_process(os.fspath(whole), os.fspath(ready), skip_symbolic_shape=True)
        if order.precision == "int8-dynamic":
            _dynamic(ready, file)
        elif calibration is None or not len(calibration):
            raise InputError("int8-static measures ranges on images: give --check DATA with real ones")
        else:
            _static(ready, file, order, calibration)


@contextmanager
def _quiet() -> Iterator[None]:
    """Onnxruntime's tools warn, in two ways, of what they decide themselves."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _dynamic(ready: Path, file: Path) -> None:
    """Linear layers alone: with convolutions, networks of depthwise layers lost 2 to 20 points (docs/serving.md)."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        os.fspath(ready), os.fspath(file), weight_type=QuantType.QInt8, per_channel=True,
        op_types_to_quantize=["MatMul", "Gemm"],
    )  # fmt: skip


def _static(ready: Path, file: Path, order: Order, calibration: NDArray[Any]) -> None:
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    quantize_static(
        os.fspath(ready),
        os.fspath(file),
        _feed(input_name(order), calibration),  # pyright: ignore[reportArgumentType] - its base class adds nothing
        quant_format=QuantFormat.QDQ,
        per_channel=True,  # depthwise layers lose points with one scale for all channels
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        extra_options={"CalibMovingAverage": True},  # no single outlier sets a range: half the loss of plain MinMax
    )


def _feed(name: str, calibration: NDArray[Any]) -> Any:
    """What onnxruntime calls a calibration reader: an object whose get_next gives a batch, at last None."""
    from types import SimpleNamespace

    batches = iter(np.array_split(calibration, max(1, len(calibration) // BATCH)))
    return SimpleNamespace(get_next=lambda: next(({name: batch} for batch in batches), None))
