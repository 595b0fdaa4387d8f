"""The group of processes: who is in it, what each takes of the work, how results become everybody's."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import pairwise
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from taskgraft.distributed.heartbeat import monitor
from taskgraft.errors import TaskgraftError

BUCKET = 25 * 2**20  # bytes of gradients that go over the wire together
PATIENCE = timedelta(days=1)  # one process may read images for hours while the others wait

T = TypeVar("T")


@contextmanager
def join_group(patience: float, silent: Callable[[int], None]) -> Iterator[None]:
    """Be one of the processes that torchrun (or `taskgraft --gpus N`) started; alone, nothing happens.

    With a GPU for each process they speak by NCCL, otherwise by gloo. `silent` is told of a process that gave no sign
    of life for `patience` seconds; the others would wait for it.
    """
    if "LOCAL_RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if gpus:
        torch.cuda.set_device(local % gpus)
    store, number, count = next(dist.rendezvous("env://"))
    # processes that were started again must not read the addresses that the dead ones left in the same store
    store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    # gloo beside NCCL carries what lies in ordinary memory
    backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
    dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=PATIENCE)
    try:
        with monitor(store.clone(), number, count, patience, silent):
            yield
    finally:
        dist.destroy_process_group()


def device() -> torch.device:
    """Where this process computes: its GPU, or the processor where there is none (CUDA_VISIBLE_DEVICES chooses)."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def world_size() -> int:
    """How many processes the run has."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main_process() -> bool:
    """Whether this is the process that writes files and speaks to the user."""
    return rank() == 0


def local_slice(count: int) -> slice:
    """This process's share of `count` rows: neighbours, in the order of the processes."""
    return slice(count * rank() // world_size(), count * (rank() + 1) // world_size())


def broadcast(make: Callable[[], T]) -> T:
    """What `make` gives the chief, for all processes (they wait for it); its TaskgraftError is raised in all of them."""
    if world_size() == 1:
        return make()
    box: list[Any] = [None]
    if is_main_process():
        try:
            box = [("value", make())]
        except TaskgraftError as error:
            box = [("error", error)]
    dist.broadcast_object_list(box, src=0)
    kind, value = box[0]
    if kind == "error":
        raise value
    return value


def main_process_first(make: Callable[[], T]) -> T:
    """What `make` gives here, after the chief has done it: what it leaves on disk is found, not made again."""
    if world_size() == 1:
        return make()
    own: list[T] = []
    broadcast(lambda: own.append(make()))
    return own[0] if is_main_process() else make()


def all_gather(own: Tensor, count: int) -> Tensor:
    """The rows of all processes [count, ...], of which `own` are this one's `part(count)`.

    Its gradient is that of this process's rows. So all processes can build one and the same loss on the whole batch,
    and the sum of their gradients is that of one process: nothing has to be scaled, whatever the loss divides by.
    """
    return own if world_size() == 1 else _Gather.apply(own, count)


def all_reduce(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by its sum over all processes."""
    if world_size() == 1:
        return
    for bucket in _buckets(tensors):
        flat = torch.cat([value.reshape(-1) for value in bucket])
        dist.all_reduce(flat)
        for value, total in zip(bucket, flat.split([value.numel() for value in bucket]), strict=True):
            value.copy_(total.view(value.shape))


def broadcast_tensors(tensors: Iterable[Tensor]) -> None:
    """Give every process the chief's values, in place: machines of other kinds may round differently."""
    if world_size() == 1:
        return
    with torch.no_grad():
        for value in tensors:
            whole = value.detach().contiguous()
            dist.broadcast(whole, src=0)
            value.detach().copy_(whole)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, count: int) -> Tensor:
        ctx.rows = local_slice(count)
        longest = -(-count // world_size())
        padded = own.new_zeros(longest, *own.shape[1:])
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in range(world_size())]
        dist.all_gather(parts, padded)
        bounds = [count * number // world_size() for number in range(world_size() + 1)]
        lengths = [stop - start for start, stop in pairwise(bounds)]
        return torch.cat([rows[:length] for rows, length in zip(parts, lengths, strict=True)])

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None]:
        return slopes[0][ctx.rows], None


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one type and device in groups of about BUCKET bytes, in their order."""
    waiting: list[Tensor] = []
    for value in tensors:
        alike = not waiting or (value.dtype, value.device) == (waiting[0].dtype, waiting[0].device)
        if waiting and (not alike or sum(other.nbytes for other in waiting) + value.nbytes > BUCKET):
            yield waiting
            waiting = []
        waiting.append(value)
    if waiting:
        yield waiting
