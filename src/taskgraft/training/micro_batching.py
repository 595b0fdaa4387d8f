"""Forward and backward passes of one batch: divided between processes, and into micro-batches where memory is short."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import pairwise

import torch
from torch import Tensor, nn

from taskgraft import distributed, seeding
from taskgraft.config import TrainingConfig
from taskgraft.errors import InputError
from taskgraft.types import Outputs


class BatchForward:
    """The logits of one training batch, and the backward pass from a loss of them.

    With `config.micro_batches` > 1 the batch goes through the model in micro-batches, twice: once without a graph, for
    logits that the loss of the whole batch can be computed from, and once more with the gradient that this loss sent to
    them (Gao et al. 2021, GradCache). So the loss is that of the whole batch, and memory that of one micro-batch;
    BatchNorm in training mode sees micro-batches.

    Attributes:
        outputs: Logits of the whole batch [B, K] by task, from all processes.
    """

    outputs: Outputs

    def __init__(
        self,
        classifier: nn.Module,
        model: Callable[[Tensor], Outputs],
        images: Tensor,
        count: int,
        config: TrainingConfig,
        step: int,
    ) -> None:
        """Run the forward pass.

        Args:
            classifier: The module whose buffers (BatchNorm's statistics) must move once per batch, and whose parameters
                get the gradient.
            model: What computes the logits: the classifier, or some of its heads.
            images: This process's images of the batch, on its device.
            count: Number of images of the whole batch.
            config: Training settings.
            step: The step, which decides dropout.
        """
        self._classifier, self._model, self._config, self._step = classifier, model, config, step
        self._micro_batches: list[Tensor] = []
        if config.micro_batches == 1:
            self._leaves = self._run(images, 0)
        else:
            passes = max(1, min(config.micro_batches, count // distributed.world_size()))  # as many in every process
            bounds = [len(images) * index // passes for index in range(passes + 1)]
            self._micro_batches = [images[start:stop] for start, stop in pairwise(bounds)]
            buffers = {name: value.clone() for name, value in classifier.named_buffers()}
            with torch.no_grad():
                outputs = [self._run(batch, index) for index, batch in enumerate(self._micro_batches)]
            for name, value in classifier.named_buffers():
                value.copy_(buffers[name])  # the second pass counts
            self._leaves = {
                task: torch.cat([logits[task] for logits in outputs]).requires_grad_() for task in outputs[0]
            }
        self.outputs = {task: distributed.all_gather(leaf, count) for task, leaf in self._leaves.items()}

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a scalar loss of `outputs`, summed over all processes, to the parameters."""
        if not self._micro_batches:
            with self._exchange([loss]):
                loss.backward()
            return
        loss.backward()
        start = 0
        for index, batch in enumerate(self._micro_batches):
            outputs = self._run(batch, index)
            tasks = [task for task, leaf in self._leaves.items() if leaf.grad is not None]
            tasks = [task for task in tasks if outputs[task].requires_grad]
            logits = [outputs[task] for task in tasks]
            gradients = [self._leaves[task].grad[start : start + len(batch)] for task in tasks]  # pyright: ignore
            is_last = index + 1 == len(self._micro_batches)  # their sum has to travel only once
            with self._exchange(logits) if is_last else nullcontext():
                torch.autograd.backward(logits, gradients)
            start += len(batch)

    def _exchange(self, outputs: Sequence[Tensor]) -> AbstractContextManager[None]:
        return distributed.sum_gradients(self._classifier.parameters(), outputs)

    def _run(self, images: Tensor, index: int) -> Outputs:
        """Run the model on micro-batch `index`; dropout is seeded by step, process and micro-batch."""
        rank, config = distributed.rank(), self._config
        position = (rank, index) if rank or index else ()
        with (
            torch.random.fork_rng(devices=[images.device] if images.is_cuda else []),
            torch.autocast(images.device.type, torch.bfloat16, enabled=config.precision == "bf16"),
            distributed.sync_batchnorm(),
        ):
            torch.manual_seed(seeding.derive(config.seed, "forward", self._step, *position))
            with batchnorm_errors():
                return self._model(images)


@contextmanager
def batchnorm_errors() -> Iterator[None]:
    """Turn the error of a BatchNorm layer that gets a single value into one of the settings.

    Raises:
        InputError: A layer in training mode got one image that has shrunk to one pixel.
    """
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise InputError(
            "BatchNorm cannot compute statistics from a single image: set --batch-size and --micro-batches so that "
            "each pass has at least 2 images, or use --norm frozen"
        ) from error
