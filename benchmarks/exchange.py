"""Two processes of one thread: images per second with gradients that travel during the backward pass, and after it.

    PYTHONPATH=src:. python -m benchmarks.exchange [--arch resnet18] [--size 64] [--batch 32] [--rounds 6]

Both ways take turns; the medians of the rounds count. Gradients are summed by gloo, in one machine.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from contextlib import nullcontext

import timm
import torch
import torch.distributed as dist
from torch import nn

from taskgraft import distributed

STEPS = 4  # in a round


def take_steps(model: nn.Module, images: torch.Tensor, early: bool) -> None:
    for _ in range(STEPS):
        model.zero_grad(set_to_none=True)
        loss = model(images).square().mean()
        with distributed.sum_gradients(model.parameters(), [loss]) if early else nullcontext():
            loss.backward()
        if not early:
            distributed.all_reduce([value.grad for value in model.parameters() if value.grad is not None])


def measure(rank: int, folder: str, args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", 2), rank=rank, world_size=2)
    torch.manual_seed(0)
    model = timm.create_model(args.arch, num_classes=10)
    images = torch.randn(args.batch // 2, 3, args.size, args.size)
    speeds: dict[bool, list[float]] = {True: [], False: []}
    for index in range(args.rounds + 1):
        for early in (True, False):
            dist.barrier()
            start = time.perf_counter()
            take_steps(model, images, early)
            dist.barrier()
            if index:  # the first round is a warm-up
                speeds[early].append(STEPS * args.batch / (time.perf_counter() - start))
    if rank == 0:
        for early, values in speeds.items():
            name = "during the backward pass" if early else "after it"
            print(f"{name:25} {statistics.median(values):6.1f} images/s ({min(values):.1f} to {max(values):.1f})")
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", default="resnet18")
    for name, default in (("size", 64), ("batch", 32), ("rounds", 6)):
        parser.add_argument(f"--{name}", type=int, default=default)
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(measure, (folder, parser.parse_args()), nprocs=2, start_method="fork")


if __name__ == "__main__":
    main()
