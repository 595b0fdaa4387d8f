"""The arithmetic of a measurement on a GPU: passes through the network in float32, sums of products on tensor cores.

cuDNN multiplies the operands of float32 convolutions with 10 bits of mantissa (TF32) unless it is told otherwise. In
the passes such rounding goes through all later layers and the kinks of their activations: emulated on an
EfficientNet-Lite0 of 196 classes, it changed tensors of the Fisher diagonal by 2.6 % (median) and up to 13 %. In the
sums of products alone, with operands rounded to nearest, no tensor of it, a ResNet-18 or a ViT-S changed by more than
0.04 %.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor

from taskgraft.config import FisherPrecision

DROPPED = 13  # bits of float32's mantissa that TF32 lacks
AMPERE = (8, 0)  # the first GPUs with TF32

SWITCHED = ("cuda",)  # devices whose arithmetic torch can switch; the switches are the whole process's

_thread = threading.local()  # backward passes on a GPU have a thread of their own


def use_tensor_cores(precision: FisherPrecision, device: torch.device) -> bool:
    """Return whether sums of products are to have rounded operands: "auto" says so where that is faster."""
    if precision != "auto":
        return precision == "tf32"
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= AMPERE


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Let a GPU compute matrix products and convolutions with all bits of float32, whatever the program has set."""
    if device.type not in SWITCHED:
        yield
        return
    with _multiply_with("ieee"):
        yield


@contextmanager
def tensor_cores(used: bool, device: torch.device) -> Iterator[None]:
    """Round what `operand` is given from here on, in this thread, and multiply it on tensor cores, if `used`."""
    if not used:
        yield
        return
    _thread.rounds = True
    try:
        with _multiply_with("tf32") if device.type in SWITCHED else nullcontext():
            yield
    finally:
        _thread.rounds = False


def operand(values: Tensor) -> Tensor:
    """Return a factor of a product: float32 values rounded to nearest within `tensor_cores`, else the values.

    Tensor cores cut bits off, which makes each sum of squares smaller; of what is rounded before, they cut nothing.
    """
    if not getattr(_thread, "rounds", False) or values.dtype != torch.float32:
        return values
    bits = values.contiguous().view(torch.int32)
    half = (1 << (DROPPED - 1)) - 1 + ((bits >> DROPPED) & 1)  # ties go to the even neighbor
    return ((bits + half) >> DROPPED << DROPPED).view(torch.float32)


@contextmanager
def _multiply_with(kind: Literal["ieee", "tf32"]) -> Iterator[None]:
    """Set how float32 is multiplied, by torch's older switches too: reading one that contradicts the newer fails."""
    backends: Any = torch.backends  # torch's annotations lack most of these
    places = (backends.cuda.matmul, backends.mkldnn.matmul, backends.cudnn.conv, backends.cudnn.rnn)
    before = [place.fp32_precision for place in places]
    switches = _read_switches()
    try:
        torch.set_float32_matmul_precision("high" if kind == "tf32" else "highest")
        backends.cudnn.allow_tf32 = kind == "tf32"
        for place in (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn):
            place.fp32_precision = kind
        yield
    finally:
        if switches:
            torch.set_float32_matmul_precision(switches[0])
            backends.cudnn.allow_tf32 = switches[1]
        for place, own in zip(places, before, strict=True):
            place.fp32_precision = own


def _read_switches() -> tuple[str, bool] | None:
    """Read the older switches; None where they contradict the newer, so that the program cannot read them either."""
    try:
        return torch.get_float32_matmul_precision(), bool(torch.backends.cudnn.allow_tf32)
    except RuntimeError:
        return None
