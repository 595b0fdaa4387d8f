"""torch.export: `model.pt2`, loaded by torch alone with torch.export.load."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from taskgraft.bundle import Bundle
from taskgraft.exports import graph
from taskgraft.exports.signature import Order, describe

FILE, EXTRA = "model.pt2", "taskgraft.json"


def write(bundle: Bundle, order: Order, folder: Path, calibration: NDArray[Any] | None) -> None:
    """Write `model.pt2` with its description as an extra file."""
    program = graph.capture(bundle, uint8=order.uint8)
    text = json.dumps(describe(bundle, order), ensure_ascii=False)
    torch.export.save(program, os.fspath(folder / FILE), extra_files={EXTRA: text})


def reopen(folder: Path) -> Callable[[NDArray[Any]], list[NDArray[np.float32]]]:
    """A function from inputs [B, …] to the logits [B, K] of each task."""
    net = torch.export.load(os.fspath(folder / FILE)).module()

    def run(inputs: NDArray[Any]) -> list[NDArray[np.float32]]:
        with torch.inference_mode():
            return [value.numpy() for value in net(torch.from_numpy(inputs))]

    return run
