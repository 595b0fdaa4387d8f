"""Training steps side by side: taskgraft's fine-tuning and methods, and a plain fp32 PyTorch loop.

    .venv/bin/python benchmarks/steps.py

Turn by turn in one process (A B C … A B C …), the medians of the turns; run it on an idle machine. Writes
benchmarks/results/steps.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import timm
import torch

from taskgraft import methods
from taskgraft.classifier import grow, wrap
from taskgraft.loop import precision, steps
from taskgraft.settings import Run
from taskgraft.types import Images, Sources, Task

OLD, NEW = Task("old", tuple(map(str, range(196)))), Task("new", tuple(map(str, range(9))))
COUNT = 64  # images; with one view all of the teacher's answers are recorded after two steps of 32


def images(size: int) -> Images:
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (COUNT, size, size, 3), dtype=np.uint8))
    return Images(pixels, {"new": torch.arange(COUNT) % 9}, ("",) * COUNT, (0.5,) * 3, (0.25,) * 3)


def plain(arch: str, found: Images, batch: int) -> Callable[[], None]:
    """What one writes first: fp32, the default memory layout, SGD with momentum, no augmentation."""
    torch.manual_seed(0)
    net = timm.create_model(arch, num_classes=9).train()
    optimiser = torch.optim.SGD(net.parameters(), 0.001, momentum=0.9)
    mean, std = torch.tensor(found.mean).view(3, 1, 1), torch.tensor(found.std).view(3, 1, 1)

    def step() -> None:
        rows = torch.randint(0, COUNT, (batch,))
        inputs = (found.pixels[rows].permute(0, 3, 1, 2).contiguous().float() / 255 - mean) / std
        loss = torch.nn.functional.cross_entropy(net(inputs), found.labels["new"][rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return step


def ours(arch: str, found: Images, notation: str, run: Run) -> Callable[[], None]:
    torch.manual_seed(0)
    net = timm.create_model(arch, num_classes=196)
    child = grow(wrap(net, net.pretrained_cfg["classifier"], [OLD]), NEW, 0)
    sources = Sources(found, None, run.views, run.augment, run.seed)
    method = methods.build(methods.parse(notation))
    state = steps.start(child, method, sources, {}, run)

    def step() -> None:
        nonlocal state
        state, _ = steps.advance(state, method, sources, run)

    return step


def measure(arch: str, size: int, batch: int, rounds: int, turn: int) -> dict[str, object]:
    found = images(size)
    run = Run(steps=10**6, batch=batch, rate=0.001, warmup=0, views=1, log_every=10**6)
    net = timm.create_model(arch, num_classes=196)
    child = grow(wrap(net, net.pretrained_cfg["classifier"], [OLD]), NEW, 0)
    run, reason = precision.choose(child, Sources(found, None, 1, run.augment, 0), run, None)
    rivals = {
        "plain fp32 loop": plain(arch, found, batch),
        "finetune": ours(arch, found, "finetune", run),
        "ewc": ours(arch, found, "ewc(images=64)", run),
        "ewc explicit": ours(arch, found, "ewc(images=64, implicit=False, strength=1.0)", run),
        "distill recorded": ours(arch, found, "distill", run),
        "distill live": ours(arch, found, "distill(teacher=live)", replace(run, views=0)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for step in rivals.values():
        for _ in range(3):
            step()
    for _ in range(rounds):
        for name, step in rivals.items():
            begin = time.perf_counter()
            for _ in range(turn):
                step()
            seconds[name].append((time.perf_counter() - begin) / turn)
    rates = {name: batch / statistics.median(taken) for name, taken in seconds.items()}
    return {
        "arch": arch, "size": size, "batch": batch, "precision": run.precision, "reason": reason,
        "images_per_second": {name: round(rate, 1) for name, rate in rates.items()},
        "spread": {name: [round(batch / max(t), 1), round(batch / min(t), 1)] for name, t in seconds.items()},
        "share_of_finetune": {name: round(rate / rates["finetune"], 3) for name, rate in rates.items()},
        "finetune_over_plain": round(rates["finetune"] / rates["plain fp32 loop"], 3),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--turn", type=int, default=6, help="steps in a turn")
    options = parser.parse_args()
    cases = [("resnet18", 64, 32), ("resnet18", 128, 32), ("tf_efficientnet_lite0", 96, 32)]
    results = [measure(*case, options.rounds, options.turn) for case in cases]
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    report = {
        "command": f"python benchmarks/steps.py --rounds {options.rounds} --turn {options.turn}",
        "machine": {"cpu": cpu, "threads": torch.get_num_threads()},
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "timm": timm.__version__},
        "results": results,
    }
    path = Path(__file__).parent / "results" / "steps.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    for result in results:
        print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
