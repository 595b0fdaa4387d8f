"""How fast it could be at best: the arithmetic at the machine's matrix peak, the bytes at its memory bandwidth.

Both are lower bounds on the time of a step, not predictions: no convolution reaches the peak of a large matrix
product, and no step touches every byte only once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from benchmarks.speed.networks import OLD, Case, labels, network, normalized, pixels
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

# Passes over a parameter of 4 bytes in a step: read in forward and backward, gradient written; AdamW reads weight,
# gradient and two moments and writes three of them back.
STEP_PASSES = 3 + 7


def count(case: Case) -> dict[str, Any]:
    """Operations and bytes of one forward and backward pass of a batch: `flops`, `saved` (activations), `parameters`.

    The backward pass is two products for each of the forward pass, but for the gradient at the images, which nobody
    needs (torch's own count of it forgets that convolutions have groups). Activations are what autograd keeps, each
    storage once; a step writes and reads them.
    """
    net = network(case, OLD)
    net.train(case.get("training", True))
    found = normalized(pixels(case, case["batch"]))
    own = {value.untyped_storage().data_ptr() for value in net.parameters()}
    kept: dict[int, int] = {}

    def seen(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    stem: list[int] = []
    first = next(module for module in net.modules() if isinstance(module, nn.Conv2d))
    handle = first.register_forward_hook(lambda _, __, out: stem.append(2 * out.numel() * first.weight[0].numel()))
    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(seen, lambda x: x):
        loss = F.cross_entropy(net(found), labels(len(found), OLD))
        flops = counter.get_total_flops()
    handle.remove()
    del loss
    return {
        "flops": 3 * flops - stem[0],
        "saved": sum(kept.values()),
        "parameters": sum(value.numel() for value in net.parameters()),
    }


def of_step(counted: Mapping[str, Any], peaks: Mapping[str, Any], batch: int, precision: str) -> dict[str, Any]:
    """Images a second that arithmetic and memory allow a training step; bf16 halves the activations."""
    bf16 = precision == "bf16"
    moved = 2 * counted["saved"] / (1 + bf16) + 4 * STEP_PASSES * counted["parameters"]
    return _rates(counted["flops"], moved, peaks, batch, bf16)


def of_fisher(counted: Mapping[str, Any], peaks: Mapping[str, Any], batch: int, images: int) -> dict[str, Any]:
    """The same for the Fisher of `images` in fp32: weights are read twice a batch, the running sum is written once."""
    passes = images / batch
    moved = passes * (2 * counted["saved"] + 8 * counted["parameters"]) + 4 * counted["parameters"]
    return _rates(passes * counted["flops"], moved, peaks, images, False)


def _rates(flops: float, moved: float, peaks: Mapping[str, Any], images: int, bf16: bool) -> dict[str, Any]:
    peak = max(peaks["bf16_flops"], peaks["fp32_flops"]) if bf16 else peaks["fp32_flops"]
    return {
        "gflop_per_image": round(flops / images / 1e9, 3),
        "mbyte_per_image": round(moved / images / 1e6, 3),
        "arithmetic": round(images * peak / flops, 1),
        "bytes": round(images * peaks["bytes"] / moved, 1),
    }
