"""Gradients summed over all processes while the backward pass still computes the rest.

Like torch's DistributedDataParallel, whose buckets these are, but for a backward pass of any function of a model: here
the forward pass may be that of one head only, the loss is the same in all processes (so gradients are added, not
averaged), and a batch in micro-batches exchanges only once. What is in a bucket depends on the graph of this one pass,
never on the passes before, so that a resumed run adds in the same order as one that was never stopped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from taskgraft.distributed.group import split_into_buckets, world_size

FIRST_BUCKET = 2**20  # bytes; small, so that the exchange begins as soon as the last layers are done


@contextmanager
def sum_gradients(parameters: Iterable[Tensor], outputs: Sequence[Tensor]) -> Iterator[None]:
    """Replace gradients by their sum over all processes; the block runs one backward pass, from `outputs`.

    Buckets of gradients travel as soon as they are complete. They are waited for at the end of the block.

    Args:
        parameters: The parameters, in an order that is the same in all processes: that of the forward pass, so that
            gradients arrive in reverse.
        outputs: What the backward pass starts from. Parameters that none of them depends on are left alone.
    """
    if world_size() == 1:
        yield
        return
    used = _find_leaves(outputs)
    exchange = _Exchange([value for value in parameters if id(value) in used][::-1])
    hooks = [value.register_post_accumulate_grad_hook(exchange.add) for value in exchange.parameters]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    exchange.finish()


class _Exchange:
    """Sends buckets in a fixed order, since processes have to sum the same one at the same time."""

    def __init__(self, parameters: list[Tensor]) -> None:
        self.parameters = parameters
        self._buckets = list(split_into_buckets(parameters, FIRST_BUCKET))
        self._bucket_of = {id(value): index for index, bucket in enumerate(self._buckets) for value in bucket}
        self._missing = [len(bucket) for bucket in self._buckets]
        self._sent: list[tuple[list[Tensor], Tensor, dist.Work | None]] = []

    def add(self, parameter: Tensor) -> None:
        """Note that the gradient of a parameter is complete; send the buckets that are."""
        self._missing[self._bucket_of[id(parameter)]] -= 1
        while len(self._sent) < len(self._buckets) and not self._missing[len(self._sent)]:
            self._send()

    def finish(self) -> None:
        """Send what is left, and put the sums in the place of the gradients."""
        while len(self._sent) < len(self._buckets):
            self._send()
        for gradients, flat, work in self._sent:
            if work:
                work.wait()
            for gradient, total in zip(gradients, flat.split([value.numel() for value in gradients]), strict=True):
                gradient.copy_(total.view(gradient.shape))

    def _send(self) -> None:
        bucket = self._buckets[len(self._sent)]
        gradients = [value.grad for value in bucket if value.grad is not None]
        flat = torch.cat([value.reshape(-1) for value in gradients]) if gradients else bucket[0].new_empty(0)
        self._sent.append((gradients, flat, dist.all_reduce(flat, async_op=True) if gradients else None))


def _find_leaves(outputs: Sequence[Tensor]) -> set[int]:
    """Return the ids of the leaf tensors to which a backward pass from `outputs` brings gradients."""
    leaves = {id(value) for value in outputs if value.is_leaf}
    waiting = [value.grad_fn for value in outputs if value.grad_fn is not None]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        variable = getattr(node, "variable", None)
        if variable is not None:
            leaves.add(id(variable))
        following = {following for following, _ in node.next_functions if following is not None} - seen
        seen |= following
        waiting.extend(following)
    return leaves
