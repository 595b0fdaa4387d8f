"""Rates of the Fisher diagonal beside plain forward + backward, a loop over images, and vmap(grad).

All ways take turns in one process (A B C D A B C D …), so that another load on the machine falls on all of them; the
table gives medians over rounds, and ratios are medians of the ratios within a round. The memory is that of a process
of its own: the growth of its peak above what it held before the work began.

    python benchmarks/fisher.py [--images 512] [--rounds 5] [--models resnet18 …]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from taskgraft.curvature import fisher_diagonal

BATCH = 32  # of plain forward + backward
SLOW = 32  # images for the loop and for vmap, whose rates are flat in the number of images
VMAP_CHUNK = 8  # with ResNet-18 the fastest of 2, 4, 8, 16; each image holds a gradient of 45 MB


class Single(nn.Module):
    """A classifier of one task."""

    def __init__(self, name: str, classes: int, size: int) -> None:
        super().__init__()
        sized: dict[str, Any] = {"img_size": size} if name.startswith(("vit", "deit", "swin")) else {}
        self.net = timm.create_model(name, num_classes=classes, **sized)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"a": self.net(images)}


def drawn_log_likelihood(logits: Tensor) -> Tensor:
    logs = logits.log_softmax(1)
    return logs.gather(1, torch.multinomial(logs.detach().exp(), 1)).sum()


def plain(model: nn.Module, images: Tensor) -> None:
    for batch in images.split(BATCH):
        model.zero_grad()
        drawn_log_likelihood(model(batch)["a"]).backward()


def fisher(model: nn.Module, images: Tensor) -> None:
    names = [name for name, _ in model.named_parameters()]
    fisher_diagonal(model, lambda i, j: images[i:j], len(images), names, ["a"])


def loop(model: nn.Module, images: Tensor) -> None:
    params = list(model.parameters())
    sums = [torch.zeros_like(p) for p in params]
    for image in images.split(1):
        grads = torch.autograd.grad(drawn_log_likelihood(model(image)["a"]), params)
        for total, one in zip(sums, grads, strict=True):
            total.addcmul_(one, one)


def vmapped(model: nn.Module, images: Tensor) -> None:
    params = {name: p.detach() for name, p in model.named_parameters()}
    sums = {name: torch.zeros_like(p) for name, p in params.items()}

    def log_p(values: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return functional_call(model, values, (image[None],))["a"][0].log_softmax(0).gather(0, label[None])[0]

    for batch in images.split(VMAP_CHUNK):
        with torch.no_grad():
            labels = torch.multinomial(model(batch)["a"].softmax(1), 1)[:, 0]
        for name, one in vmap(grad(log_p), in_dims=(None, 0, 0))(params, batch, labels).items():
            sums[name] += one.square_().sum(0)


WAYS: dict[str, Callable[[nn.Module, Tensor], None]] = {
    "forward + backward": plain,
    "fisher_diagonal": fisher,
    "loop over images": loop,
    "vmap(grad)": vmapped,
}


def prepare(name: str, images: int, size: int) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Single(name, 196, size).eval(), torch.randn(images, 3, size, size)


def take_turns(name: str, images: int, size: int, rounds: int) -> dict[str, list[float]]:
    """Give the rates in images/s of each way, one per round."""
    model, pixels = prepare(name, images, size)
    for way in WAYS.values():
        way(model, pixels[:BATCH])  # the first calls choose kernels
    rates: dict[str, list[float]] = {label: [] for label in WAYS}
    for _ in range(rounds):
        for label, way in WAYS.items():
            some = pixels if way in (plain, fisher) else pixels[:SLOW]
            start = time.perf_counter()
            way(model, some)
            rates[label].append(len(some) / (time.perf_counter() - start))
    return rates


def peak(name: str, size: int, label: str) -> int:
    """Measure in a fresh process by how many bytes a way lifts the peak of the resident memory."""
    command = [sys.executable, __file__, "--models", name, "--size", str(size), "--memory-of", label]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_growth(name: str, size: int, label: str) -> None:
    model, images = prepare(name, 4 * BATCH, size)
    before = high_water()
    WAYS[label](model, images)
    print(high_water() - before)


def high_water() -> int:
    """Read the peak of the resident memory in bytes (Linux; `getrusage` would give that of the parent process)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def summary(name: str, size: int, rates: dict[str, list[float]]) -> dict[str, Any]:
    ours = rates["fisher_diagonal"]
    spread = {k: {"median": statistics.median(v), "min": min(v), "max": max(v)} for k, v in rates.items()}
    against = {k: statistics.median(f / r for f, r in zip(ours, v, strict=True)) for k, v in rates.items()}
    memory = {label: peak(name, size, label) for label in ("forward + backward", "fisher_diagonal")}
    return {
        "model": name,
        "pixels": size,
        "images_per_second": spread,
        "fisher_time_over_forward_backward": 1 / against["forward + backward"],
        "fisher_rate_over_loop": against["loop over images"],
        "fisher_rate_over_vmap": against["vmap(grad)"],
        "peak_bytes": memory,
        "peak_over_forward_backward": memory["fisher_diagonal"] / memory["forward + backward"],
    }


def machine() -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
    }


def show(result: dict[str, Any]) -> None:
    print(f"\n{result['model']} at {result['pixels']} px           images/s (median, min to max)")
    for label, rate in result["images_per_second"].items():
        print(f"  {label:20s} {rate['median']:9.1f}   {rate['min']:.1f} to {rate['max']:.1f}")
    print(f"  Fisher takes {result['fisher_time_over_forward_backward']:.2f} times forward + backward, ", end="")
    print(f"{result['fisher_rate_over_loop']:.2f} times the rate of the loop, ", end="")
    print(f"{result['fisher_rate_over_vmap']:.2f} times that of vmap; ", end="")
    print(f"memory {result['peak_over_forward_backward']:.2f} times that of forward + backward")


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the Fisher diagonal against its rivals.")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--models", nargs="+", default=["resnet18"])
    parser.add_argument("--memory-of", choices=list(WAYS), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.memory_of:
        print_growth(given.models[0], given.size, given.memory_of)
        return
    report: dict[str, Any] = {"machine": machine(), "images": given.images, "rounds": given.rounds, "results": []}
    target = Path(__file__).parent / "results" / "fisher.json"
    target.parent.mkdir(exist_ok=True)
    for name in given.models:
        rates = take_turns(name, given.images, given.size, given.rounds)
        report["results"].append(summary(name, given.size, rates))
        show(report["results"][-1])
        target.write_text(json.dumps(report, indent=2) + "\n")  # after each, in case a later one is cut off


if __name__ == "__main__":
    main()
