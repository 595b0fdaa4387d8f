"""torch.export: the classifier as one function of a batch, which the ONNX formats start from, and `model.pt2`."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from taskgraft.bundle import Bundle
from taskgraft.exports.signature import ExportConfig, Runner, describe
from taskgraft.models.classifier import Classifier

FILE, DESCRIPTION = "model.pt2", "taskgraft.json"
MAX_BATCH = 4096


class LogitsOfImages(nn.Module):
    """Normalized images [B, C, S, S] float32 -> logits [B, K] of each task, as a tuple."""

    def __init__(self, classifier: Classifier) -> None:
        """Wrap a classifier, which is used as it is."""
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Compute the logits of every task in one pass."""
        return tuple(self.classifier(images).values())


class LogitsOfPixels(LogitsOfImages):
    """Pixels [B, S, S, C] uint8 -> logits [B, K] of each task; the graph includes the normalization."""

    scale: Tensor
    offset: Tensor

    def __init__(self, classifier: Classifier, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        """Wrap a classifier; `mean` and `std` apply to values in [0, 1], with the operations of `data.normalize`."""
        super().__init__(classifier)
        self.register_buffer("scale", 1 / (255 * torch.tensor(std)))
        self.register_buffer("offset", torch.tensor(mean) / torch.tensor(std))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Normalize, then compute the logits of every task in one pass."""
        return super().forward((images.float() * self.scale - self.offset).permute(0, 3, 1, 2))


def capture(bundle: Bundle, *, uint8: bool) -> ExportedProgram:
    """Capture a copy of the model on the CPU, in eval mode, for any batch size."""
    classifier, preprocessing = copy.deepcopy(bundle.classifier).cpu().eval(), bundle.preprocessing
    size, channels = preprocessing.size, preprocessing.channels
    # an example of one image would fix the batch at one (pytorch issue 148886)
    if uint8:
        net: nn.Module = LogitsOfPixels(classifier, preprocessing.mean, preprocessing.std)
        example = torch.zeros(2, size, size, channels, dtype=torch.uint8)
    else:
        net, example = LogitsOfImages(classifier), torch.zeros(2, channels, size, size)
    shapes = ({0: Dim("batch", min=1, max=MAX_BATCH)},)
    with torch.no_grad():
        return torch.export.export(net.eval(), (example,), dynamic_shapes=shapes)


def write(bundle: Bundle, config: ExportConfig, folder: Path, calibration: NDArray[Any] | None = None) -> None:
    """Write `model.pt2`, with the description as an extra file."""
    program = capture(bundle, uint8=config.uint8)
    description = json.dumps(describe(bundle, config), ensure_ascii=False)
    torch.export.save(program, os.fspath(folder / FILE), extra_files={DESCRIPTION: description})


def load(folder: Path) -> Runner:
    """Load the exported program."""
    net = torch.export.load(os.fspath(folder / FILE)).module()

    def run(inputs: NDArray[Any]) -> list[NDArray[np.float32]]:
        with torch.inference_mode():
            return [logits.numpy() for logits in net(torch.from_numpy(inputs))]

    return run
