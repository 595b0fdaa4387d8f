"""Gradient projection memory: move the weights only in directions that the old function does not use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from taskgraft.config import Range
from taskgraft.curvature.per_sample_sums import Geometry, pad_same
from taskgraft.methods.protocol import Method, Settings, Traits
from taskgraft.models.classifier import Classifier, inherited_parameters
from taskgraft.models.eval_mode import eval_mode
from taskgraft.models.inference import compute_once, image_reader, sample_evenly
from taskgraft.types import Images, Memory, Params, TrainingData

BATCH_SIZE = 32
ROWS = 2000  # inputs of a layer that a basis is computed from; evenly spread over images and positions


@dataclass(frozen=True)
class Gpm(Settings):
    """Keep each layer's update orthogonal to the inputs of the old tasks (Saha, Garg, Roy 2021, GPM).

    M [d, k] is an orthonormal basis of the principal directions of a layer's inputs (of a convolution's patches), as
    many as hold the fraction `threshold` of their energy; the update dW becomes dW (I - M M^T), so the layer answers
    those inputs as before. Inherited biases and normalization weights stay as they are. `first` is the threshold of the
    first layer, 0 = as the others.

    The inputs are those of the old sample and of the tasks that earlier extensions with gpm learned; without
    either, of the new images, which leaves the new task the directions below the threshold. BatchNorm's statistics
    are held by `--norm frozen` alone.
    """

    traits = Traits(uses_weights=True)

    threshold: Annotated[float, Range(0.8, 0.999, above=0, at_most=1)] = 0.97
    first: Annotated[float, Range(0.8, 0.999, at_least=0, at_most=1, searched=False)] = 0.0
    images: Annotated[int, Range(64, 4096, at_least=1, searched=False)] = 300

    def note(self, finished: Memory, past: Memory, has_old: bool) -> str | None:
        """Say where the directions come from if not from old images."""
        if has_old or past:
            return None
        return "no old sample was given: the protected directions are those that the new images use"

    def build(self) -> Method:
        """Use `remember` (the bases), `project` and `finish` (the bases with the new task's inputs added)."""

        def remember(classifier: Classifier, sources: TrainingData, past: Memory) -> Memory:
            inherited = list(inherited_parameters(classifier))
            bases: Params = past.get("bases", {})
            if not bases and len(classifier.heads) > 1:
                images = sources.old or sources.new
                name = f"principal inputs of {self.images} images at {self.threshold} and {self.first}"
                bases = compute_once(sources, name, lambda: self._extend(classifier, images, {}, inherited))
            held = {name: torch.zeros(0) for name in inherited if bases and name not in bases}
            return {"bases": dict(bases), "held": held}

        def project(movement: Params, memory: Memory) -> Params:
            allowed = dict(movement)
            for name, step in movement.items():
                if name in memory["bases"]:
                    allowed[name] = _remove(step, memory["bases"][name])
                elif name in memory["held"]:
                    allowed[name] = torch.zeros_like(step)
            return allowed

        def finish(classifier: Classifier, memory: Memory, sources: TrainingData) -> tuple[Classifier, Memory]:
            names = [name for name, _ in classifier.named_parameters()]
            return classifier, {"bases": self._extend(classifier, sources.new, memory["bases"], names)}

        return Method(remember=remember, project=project, finish=finish)

    def _extend(self, classifier: Classifier, images: Images, bases: Params, names: list[str]) -> Params:
        """Return the bases [G, d, k] by weight, with the principal inputs of `images` added (GPM, eq. 5 and 9)."""
        extended = dict(bases)
        for number, (name, inputs) in enumerate(_layer_inputs(classifier, images, names, self.images).items()):
            threshold = self.first if self.first and not number else self.threshold
            old = bases.get(name, inputs.new_zeros(len(inputs), inputs.shape[2], 0)).to(inputs)
            extended[name] = torch.cat([old, _principal_directions(inputs, old, threshold)], 2)
        return extended


def _remove(step: Tensor, basis: Tensor) -> Tensor:
    """Return dW (I - M M^T) for a weight's step [O, ...], M [G, d, k] by group of outputs."""
    groups, width, _ = basis.shape
    rows = step.reshape(groups, -1, width)
    basis = basis.to(rows)
    return (rows - rows @ basis @ basis.mT).view_as(step)


def _principal_directions(inputs: Tensor, old: Tensor, threshold: float) -> Tensor:
    """Return what to add to the bases `old` [G, d, k] so that they hold `threshold` of the energy of X [G, n, d].

    Groups that need fewer directions than others are filled with zeros.
    """
    total = inputs.square().sum((1, 2))
    left = inputs - inputs @ old @ old.mT
    _, values, directions = torch.linalg.svd(left, full_matrices=False)
    energies = values.square()
    held = (total - energies.sum(1))[:, None] + energies.cumsum(1) - energies  # before each direction is added
    noise = 1e-10 * total[:, None]  # directions of rounding alone, which a threshold of 1 would add
    missing = (held < threshold * total[:, None]) & (energies > noise)
    count = int(missing.sum(1).max())
    return (directions * missing[:, :, None])[:, :count].mT.contiguous()


def _layer_inputs(classifier: Classifier, images: Images, names: list[str], count: int) -> Params:
    """Return X [G, n, d], inputs of each weight in the order of the forward pass, in eval mode; n is at most ROWS."""
    weights = dict(classifier.named_parameters())
    chosen = sample_evenly(images, count)
    read, total = image_reader(chosen, classifier), len(chosen.pixels)
    starts = range(0, total, BATCH_SIZE)
    recorder = _Recorder({id(weights[name]): name for name in names}, ROWS // len(starts))
    with eval_mode(classifier), torch.no_grad(), recorder:
        for start in starts:
            classifier(read(start, min(start + BATCH_SIZE, total)))
    return {name: torch.cat(rows, 1) for name, rows in recorder.inputs.items()}


class _Recorder(TorchFunctionMode):
    """Collects what linear layers and convolutions read, by the name of their weight: at most `rows` of each call."""

    def __init__(self, names: dict[int, str], rows: int) -> None:
        super().__init__()
        self.names, self.rows = names, rows
        self.inputs: dict[str, list[Tensor]] = {}

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        read = {F.linear: _linear_inputs, F.conv2d: _patches}.get(func)
        weight = args[1] if len(args) > 1 else kwargs.get("weight")
        if read and id(weight) in self.names:
            found = read(*args, **kwargs)
            spread = torch.linspace(0, found.shape[1] - 1, min(self.rows, found.shape[1])).long()
            self.inputs.setdefault(self.names[id(weight)], []).append(found[:, spread])
        return func(*args, **kwargs)


def _linear_inputs(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return the inputs of a linear layer as [1, n, d]."""
    return input.reshape(1, -1, input.shape[-1])


def _patches(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """Return what each output position of a convolution reads, as [G, n, d]."""
    border = (0, 0) if isinstance(padding, str) else _pair(padding)
    geometry = Geometry((weight.shape[2], weight.shape[3]), _pair(stride), border, _pair(dilation))
    if padding == "same":
        input = pad_same(input, geometry)
    columns = F.unfold(input, geometry.kernel, geometry.dilation, geometry.padding, geometry.stride)
    return columns.unflatten(1, (groups, -1)).permute(1, 0, 3, 2).flatten(1, 2)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])
