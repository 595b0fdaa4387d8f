"""Several classifiers side by side as one, which answers the tasks of all in one pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taskgraft.models.classifier import Classifier, HeadSpec
from taskgraft.models.eval_mode import eval_mode
from taskgraft.types import Task


class Conversion(nn.Module):
    """Images [B, C, H, W] that were prepared for one model -> for another: other size, mean and standard deviation."""

    scale: Tensor
    shift: Tensor

    def __init__(self, size: int, source: Sequence[Sequence[float]], target: Sequence[Sequence[float]]) -> None:
        """Prepare the conversion.

        Args:
            size: Side of the images of the other model in pixels.
            source: Mean and standard deviation of the images that come in.
            target: Mean and standard deviation that the other model expects.
        """
        super().__init__()
        self.size = size
        (mean, std), (other_mean, other_std) = (
            (torch.tensor(pair[0]).view(-1, 1, 1), torch.tensor(pair[1]).view(-1, 1, 1)) for pair in (source, target)
        )
        self.register_buffer("scale", std / other_std)
        self.register_buffer("shift", (mean - other_mean) / other_std)
        self.is_normalized = bool((self.scale == 1).all()) and bool((self.shift == 0).all())

    def forward(self, images: Tensor) -> Tensor:
        """Convert images; those that already are as they should be stay bit-identical."""
        if images.shape[-1] != self.size:
            images = F.interpolate(images, (self.size, self.size), mode="bilinear", antialias=True)
        return images if self.is_normalized else images * self.scale + self.shift


class ParallelBackbones(nn.Module):
    """Images [B, C, H, W] -> the features [B, sum D] of several classifiers, each of which sees its own conversion."""

    def __init__(self, classifiers: Sequence[Classifier], conversions: Sequence[nn.Module]) -> None:
        """The classifiers are shared, not copied."""
        super().__init__()
        self.classifiers = nn.ModuleList(classifiers)
        self.conversions = nn.ModuleList(conversions)

    def forward(self, images: Tensor) -> Tensor:
        """Concatenate the features of all classifiers."""
        members = zip(self.classifiers, self.conversions, strict=True)
        features = [classifier.features(convert(images)) for classifier, convert in members]  # pyright: ignore[reportCallIssue]
        return torch.cat(features, 1)


def join(classifiers: Sequence[Classifier], conversions: Sequence[nn.Module], image: Tensor) -> Classifier:
    """Join classifiers to one with the tasks of all; a task that several have is answered by the first of them.

    Args:
        classifiers: The classifiers, with one softmax per task.
        conversions: What turns the joint input into the input of each.
        image: An input [1, C, H, W].
    """
    tasks: dict[str, Task] = {}
    heads: list[nn.Linear] = []
    specs: list[HeadSpec] = []
    first_column = 0
    for classifier, convert in zip(classifiers, conversions, strict=True):
        for spec, head in zip(classifier.head_specs, classifier.linears(), strict=True):
            if spec.task not in tasks:
                heads.append(head)
                specs.append(HeadSpec(spec.task, first_column + spec.start, first_column + spec.stop))
        tasks = {**{task.name: task for task in classifier.tasks}, **tasks}
        with eval_mode(classifier), torch.inference_mode():
            first_column += classifier.features(convert(image)).shape[1]
    ordered = list(dict.fromkeys(spec.task for spec in specs))
    backbone = ParallelBackbones(classifiers, conversions)
    return Classifier(backbone, heads, [tasks[name] for name in ordered], head_specs=specs)
