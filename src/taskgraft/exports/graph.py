"""The classifier as one function of a batch, captured by torch.export: what the other files are made of."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from taskgraft.bundle import Bundle
from taskgraft.models.classifier import Classifier

LARGEST_BATCH = 4096


class Answers(nn.Module):
    """Images [B, 3, S, S] float32, normalized -> a tuple of logits [B, K], one for each task in order."""

    def __init__(self, classifier: Classifier) -> None:
        """The classifier is used as it is, in eval mode."""
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Logits of every task from one pass."""
        return tuple(self.classifier(images).values())


class PixelAnswers(nn.Module):
    """Pixels [B, S, S, 3] uint8 -> the same; the normalization is part of the graph."""

    scale: Tensor
    offset: Tensor

    def __init__(self, classifier: Classifier, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        """`mean` and `std` apply to values scaled to [0, 1]; the arithmetic is that of `data.normalize`."""
        super().__init__()
        self.answers = Answers(classifier)
        self.register_buffer("scale", 1 / (255 * torch.tensor(std)))
        self.register_buffer("offset", torch.tensor(mean) / torch.tensor(std))

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Logits of every task from one pass."""
        return self.answers((pixels.float() * self.scale - self.offset).permute(0, 3, 1, 2))


def capture(bundle: Bundle, *, uint8: bool) -> ExportedProgram:
    """Capture the model for any batch size, on the CPU and in eval mode; the bundle's own network is left alone."""
    classifier, preprocessing = copy.deepcopy(bundle.classifier).cpu().eval(), bundle.preprocessing
    size = preprocessing.size
    # an example of one image would fix the batch at one (pytorch issue 148886)
    if uint8:
        net: nn.Module = PixelAnswers(classifier, preprocessing.mean, preprocessing.std)
        example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    else:
        net, example = Answers(classifier), torch.zeros(2, 3, size, size)
    shapes = ({0: Dim("batch", min=1, max=LARGEST_BATCH)},)
    with torch.no_grad():
        return torch.export.export(net.eval(), (example,), dynamic_shapes=shapes)
