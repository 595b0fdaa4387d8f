"""The classifier's answers to a batch: shared between processes, and in pieces where memory is short."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from taskgraft import distributed, seeding
from taskgraft.config import TrainingConfig
from taskgraft.errors import InputError
from taskgraft.types import Outputs

Answer = Callable[[Tensor], Outputs]


def forward(
    model: nn.Module, answer: Answer, own: Tensor, count: int, config: TrainingConfig, step: int
) -> tuple[Outputs, Callable[[], None]]:
    """The logits of all `count` images of step's batch, of which `own` are this process's, by `answer` of `model`.

    The second result is to be called after the loss's `backward`. With run.pieces > 1 the batch goes through the model
    piece by piece, twice: once without a graph, for logits that the whole loss can be made of, and once more, piece by
    piece, with the gradient that this loss sent to them (Gao et al. 2021, GradCache). So the loss is that of the whole
    batch, and memory that of one piece; BatchNorm in training mode sees pieces.
    """
    if config.micro_batches == 1:
        return _answered(answer, own, count, config, _noise(config, step, 0)), lambda: None
    bounds = [len(own) * number // config.micro_batches for number in range(config.micro_batches + 1)]
    parts = [own[start:stop] for start, stop in pairwise(bounds) if stop > start]
    statistics = {name: value.clone() for name, value in model.named_buffers()}
    with torch.no_grad():
        logits = [_here(answer, part, config, _noise(config, step, number)) for number, part in enumerate(parts)]
    for name, value in model.named_buffers():
        value.copy_(statistics[name])  # the second time counts
    leaves = {task: torch.cat([part[task] for part in logits]).requires_grad_() for task in logits[0]}

    def back() -> None:
        start = 0
        for number, part in enumerate(parts):
            again = _here(answer, part, config, _noise(config, step, number))
            reached = [task for task, leaf in leaves.items() if leaf.grad is not None and again[task].requires_grad]
            slopes = [_of(leaves[task])[start : start + len(part)] for task in reached]
            torch.autograd.backward([again[task] for task in reached], slopes)
            start += len(part)

    return {task: distributed.all_gather(leaf, count) for task, leaf in leaves.items()}, back


def _answered(answer: Answer, own: Tensor, count: int, config: TrainingConfig, seed: int) -> Outputs:
    return {task: distributed.all_gather(logits, count) for task, logits in _here(answer, own, config, seed).items()}


def _here(answer: Answer, images: Tensor, config: TrainingConfig, seed: int) -> Outputs:
    with (
        torch.random.fork_rng(devices=[images.device] if images.is_cuda else []),
        torch.autocast(images.device.type, torch.bfloat16, enabled=config.precision == "bf16"),
        distributed.sync_batchnorm(),
    ):
        torch.manual_seed(seed)
        try:
            return answer(images)
        except ValueError as error:  # torch says it of a layer, when the image has shrunk to one pixel
            if "more than 1 value per channel" not in str(error):
                raise
            raise InputError(
                "BatchNorm has no statistics of one image alone: give --batch-size or --micro-batches such that at least 2 images "
                "go through at once, or --norm frozen"
            ) from error


def _noise(config: TrainingConfig, step: int, piece: int) -> int:
    """The seed of dropout and drop-path: a function of the step, other in each process and piece."""
    place = [number for number in (distributed.rank(), piece) if distributed.rank() or piece]
    return seeding.derive(config.seed, "forward", step, *place)


def _of(leaf: Tensor) -> Tensor:
    assert leaf.grad is not None
    return leaf.grad
