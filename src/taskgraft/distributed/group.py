"""The process group: join it, split work, and exchange tensors and objects."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from itertools import pairwise
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from taskgraft.distributed.heartbeat import monitor
from taskgraft.errors import InputError, TaskgraftError

BUCKET = 25 * 2**20  # bytes of gradients in one all-reduce
TIMEOUT = timedelta(days=1)  # one process may read images for hours while the others wait

DEVICE_NAME = re.compile(r"cpu|cuda(:\d+)?|mps")

T = TypeVar("T")

_device: ContextVar[torch.device | None] = ContextVar("device", default=None)


@contextmanager
def join_group(heartbeat_timeout: float, on_timeout: Callable[[int], None]) -> Iterator[None]:
    """Join the processes that torchrun (or `taskgraft --gpus N`) started; a single process does nothing.

    Uses NCCL with one GPU per process, otherwise gloo.

    Args:
        heartbeat_timeout: Seconds without a heartbeat after which a process counts as dead.
        on_timeout: Called with the rank of such a process, for which the others would wait forever.
    """
    if "LOCAL_RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    gpus = torch.cuda.device_count()
    if gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % gpus)
    store, rank, world_size = next(dist.rendezvous("env://"))
    # restarted processes must not read the addresses that the dead ones left in the same store
    store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"  # gloo for objects and CPU tensors
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=TIMEOUT)
    try:
        with monitor(store.clone(), rank, world_size, heartbeat_timeout, on_timeout):
            yield
    finally:
        dist.destroy_process_group()


@contextmanager
def use_device(name: str) -> Iterator[None]:
    """Choose what `device` returns inside the block.

    Args:
        name: "auto", "cpu", "cuda", "cuda:N" or "mps".

    Raises:
        InputError: There is no such device, or this process was given another GPU.
    """
    chosen = _open_device(name)
    if chosen is not None and chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    token = _device.set(chosen)
    try:
        yield
    finally:
        _device.reset(token)


def _open_device(name: str) -> torch.device | None:
    """Return a device that exists, with its number; None for "auto"."""
    if name == "auto":
        return None
    if not DEVICE_NAME.fullmatch(name):
        raise InputError(f"--device {name!r}: give one of auto, cpu, cuda, cuda:N (such as cuda:1), mps")
    kind, _, number = name.partition(":")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise InputError("--device mps: this machine has no Apple GPU that torch can use; give cpu")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not count:
            raise InputError(f"--device {name}: torch {torch.__version__} finds no GPU here; give cpu")
        if number and world_size() > 1:
            raise InputError(f"--device {name}: each process has a GPU of its own; give cuda, or leave --gpus out")
        if number and int(number) >= count:
            raise InputError(f"--device {name}: this machine has {count} GPU(s); give cuda:0 to cuda:{count - 1}")
        return torch.device("cuda", int(number) if number else torch.cuda.current_device())
    return torch.device(kind)


def device() -> torch.device:
    """Return the device of `use_device`, else this process's GPU, or the CPU if there is none.

    CUDA_VISIBLE_DEVICES selects, too.
    """
    chosen = _device.get()
    if chosen is not None:
        return chosen
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the rank of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main_process() -> bool:
    """Return whether this process writes files and prints."""
    return rank() == 0


def local_slice(count: int) -> slice:
    """Return this process's contiguous slice of `count` rows."""
    return slice(count * rank() // world_size(), count * (rank() + 1) // world_size())


def broadcast(make: Callable[[], T]) -> T:
    """Return in all processes what `make` returns in the main one; a TaskgraftError is raised in all of them."""
    if world_size() == 1:
        return make()
    outcome: list[Any] = [None]
    if is_main_process():
        try:
            outcome = [make()]
        except TaskgraftError as error:
            outcome = [error]
    dist.broadcast_object_list(outcome, src=0)
    if isinstance(outcome[0], TaskgraftError):
        raise outcome[0]
    return outcome[0]


def main_process_first(make: Callable[[], T]) -> T:
    """Call `make` in the main process first, then in the others, which find what it left on disk."""
    if world_size() == 1:
        return make()
    results: list[T] = []
    broadcast(lambda: results.append(make()))
    return results[0] if is_main_process() else make()


def all_gather(local: Tensor, count: int) -> Tensor:
    """Gather the rows of all processes [count, ...], of which `local` are this one's `local_slice(count)`.

    Differentiable: the gradient is that of this process's rows. All processes can thus compute the same loss on the
    whole batch, and the sum of their gradients is that of a single process, whatever the loss divides by.
    """
    return local if world_size() == 1 else _Gather.apply(local, count)


def all_reduce(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by its sum over all processes, in place."""
    if world_size() == 1:
        return
    for bucket in split_into_buckets(tensors):
        flat = torch.cat([value.reshape(-1) for value in bucket])
        dist.all_reduce(flat)
        for value, total in zip(bucket, flat.split([value.numel() for value in bucket]), strict=True):
            value.copy_(total.view(value.shape))


def broadcast_tensors(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors with those of the main process: different machines may round differently."""
    if world_size() == 1:
        return
    with torch.no_grad():
        for value in tensors:
            contiguous = value.detach().contiguous()
            dist.broadcast(contiguous, src=0)
            value.detach().copy_(contiguous)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor, count: int) -> Tensor:
        ctx.rows = local_slice(count)
        padded = local.new_zeros(-(-count // world_size()), *local.shape[1:])
        padded[: len(local)] = local
        gathered = [torch.empty_like(padded) for _ in range(world_size())]
        dist.all_gather(gathered, padded)
        bounds = [count * rank // world_size() for rank in range(world_size() + 1)]
        lengths = [stop - start for start, stop in pairwise(bounds)]
        return torch.cat([rows[:length] for rows, length in zip(gathered, lengths, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0][ctx.rows], None


def split_into_buckets(tensors: Iterable[Tensor], first: int = BUCKET) -> Iterator[list[Tensor]]:
    """Yield groups of consecutive tensors of one type and device: about `first` bytes, then about BUCKET each."""
    bucket: list[Tensor] = []
    size, limit = 0, first
    for value in tensors:
        compatible = not bucket or (value.dtype, value.device) == (bucket[0].dtype, bucket[0].device)
        if bucket and (not compatible or size + value.nbytes > limit):
            yield bucket
            bucket, size, limit = [], 0, BUCKET
        bucket.append(value)
        size += value.nbytes
    if bucket:
        yield bucket
