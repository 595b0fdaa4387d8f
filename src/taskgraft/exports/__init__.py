"""A model as files that other runtimes load, each checked against the model in the runtime that it is for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray

from taskgraft.bundle import Bundle
from taskgraft.exports import onnx_file, openvino_file, pt2, timm_folder, triton
from taskgraft.exports.describe import Order
from taskgraft.exports.verify import Runner
from taskgraft.problem import Problem, need

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
    """The format that an order asks for; raises Problem for what it cannot do, or where its libraries are missing."""
    if order.format not in FORMATS:
        raise Problem(f"--format {order.format!r} is not known; give one of {', '.join(FORMATS)}")
    wanted = FORMATS[order.format]
    if order.precision not in PRECISIONS:
        raise Problem(f"--precision {order.precision!r} is not known; give one of {', '.join(PRECISIONS)}")
    if order.precision not in wanted.precisions:
        able = ", ".join(name for name, other in FORMATS.items() if order.precision in other.precisions)
        raise Problem(
            f"--precision {order.precision} is not written for {order.format}; choose {able}, or another precision"
        )
    if order.uint8 and not wanted.uint8:
        raise Problem(f"--uint8-input puts the normalisation into a graph, and {order.format} has none; leave it out")
    need(wanted.extra, *wanted.needs, what=f"--format {order.format}")
    return wanted


__all__ = ["FORMATS", "PRECISIONS", "Format", "Order", "chosen"]
