"""A model as files that other runtimes load, each checked against the model in the runtime that it is for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray

from taskgraft.bundle import Bundle
from taskgraft.errors import InputError, require
from taskgraft.exports import onnx_file, openvino_file, pt2, timm_folder, triton
from taskgraft.exports.signature import Order
from taskgraft.exports.verify import Runner

PRECISIONS = ("fp32", "int8-dynamic", "int8-static")


class Format(NamedTuple):
    """How one kind of file is written and opened again; `needs` are modules, `extra` what brings them."""

    write: Callable[[Bundle, Order, Path, NDArray[Any] | None], None]
    reopen: Callable[[Path], Runner]
    needs: tuple[str, ...] = ()
    extra: str = ""
    precisions: tuple[str, ...] = ("fp32",)
    uint8: bool = True


ONNX = ("onnx", "onnxscript", "onnxruntime")

FORMATS = {
    "onnx": Format(onnx_file.write, onnx_file.reopen, ONNX, "export", PRECISIONS),
    "triton": Format(triton.write, triton.reopen, ONNX, "export", PRECISIONS),
    "openvino": Format(openvino_file.write, openvino_file.reopen, (*ONNX, "openvino"), "openvino"),
    "pt2": Format(pt2.write, pt2.reopen),
    "safetensors": Format(timm_folder.write, timm_folder.reopen, uint8=False),
}


def chosen(order: Order) -> Format:
    """The format that an order asks for; raises TaskgraftError for what it cannot do, or where its libraries are missing."""
    if order.format not in FORMATS:
        raise InputError(f"--format {order.format!r} is not known; give one of {', '.join(FORMATS)}")
    chosen_format = FORMATS[order.format]
    if order.precision not in PRECISIONS:
        raise InputError(f"--precision {order.precision!r} is not known; give one of {', '.join(PRECISIONS)}")
    if order.precision not in chosen_format.precisions:
        able = ", ".join(name for name, other in FORMATS.items() if order.precision in other.precisions)
        raise InputError(
            f"--precision {order.precision} is not written for {order.format}; choose {able}, or another precision"
        )
    if order.uint8 and not chosen_format.uint8:
        raise InputError(
            f"--uint8-input puts the normalization into a graph, and {order.format} has none; leave it out"
        )
    require(chosen_format.extra, *chosen_format.needs, what=f"--format {order.format}")
    return chosen_format


__all__ = ["FORMATS", "PRECISIONS", "Format", "Order", "chosen"]
