"""taskgraft on one GPU beside the loops that people write: images per second, the Fisher, where a step's time goes.

    PYTHONPATH=src:. python -m benchmarks.gpu [--out FILE] [--seconds 400] [--quick]

Every rival takes its turn in each round, timed on the device after a warm-up; medians count. Without a GPU it runs on
the processor, which only shows that it works. What is not done when the time is up is left out.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from benchmarks.speed import loops, ours
from benchmarks.speed.networks import LR, MEAN, STD, Case, labels, network, pixels
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from taskgraft import distributed
from taskgraft.config import FisherPrecision
from taskgraft.curvature.fisher import fisher_diagonal
from taskgraft.data.placement import place
from taskgraft.models.inference import image_reader
from taskgraft.results.record import versions
from taskgraft.training import loop
from taskgraft.types import Params

DEVICE = distributed.device()
RESULTS = Path(__file__).parent / "results" / "gpu.json"
ROUNDS, SETTLING, CLIP = 4, 5, 1.0
CASES: tuple[tuple[Case, int], ...] = (
    ({"arch": "resnet50", "size": 224, "batch": 64, "images": 1024}, 8),
    ({"arch": "vit_small_patch16_224", "size": 224, "batch": 64, "images": 512}, 8),
    ({"arch": "tf_efficientnet_lite0", "size": 96, "batch": 32, "images": 1024}, 20),
    ({"arch": "resnet18", "size": 64, "batch": 32, "images": 1024}, 20),
)
FISHERS: tuple[Case, ...] = (
    {"arch": "resnet18", "size": 224, "batch": 64, "images": 512},
    {"arch": "resnet50", "size": 224, "batch": 64, "images": 256},
    {"arch": "vit_small_patch16_224", "size": 224, "batch": 64, "images": 256},
    {"arch": "tf_efficientnet_lite0", "size": 96, "batch": 64, "images": 512},
)
QUICK: Case = {"arch": "test_resnet", "size": 32, "batch": 8, "images": 16}
METHODS = ("finetune", "ewc(images=64)", "si", "distill", "distill(teacher=live)", "branch")
Steps = Callable[[int], None]  # takes that many steps


def synchronize() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def method_steps(case: Case, method: str, resident: bool = True) -> tuple[Steps, str]:
    """A method's training steps, with the pixels on the device or in the host's memory."""
    state, built, sources, config = ours.started({**case, "method": method}, DEVICE)
    if resident:
        sources = sources._replace(new=place(sources.new, DEVICE))
    recording = -(-case["images"] // case["batch"]) if method == "distill" else 0
    state = loop.fit(state, built, sources, config, until=SETTLING + recording)

    def take(count: int) -> None:
        nonlocal state
        state = loop.fit(state, built, sources, config, until=state.step + count)

    return take, config.precision


def batches(case: Case, resident: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of bytes on the device: they stay there, or come from pinned memory while the device computes."""
    images, targets = pixels(case), labels(case["images"])
    if resident:
        images, targets = images.to(DEVICE), targets.to(DEVICE)
    elif DEVICE.type == "cuda":
        images, targets = images.pin_memory(), targets.pin_memory()
    while True:
        for start in range(0, case["images"] - case["batch"] + 1, case["batch"]):
            rows = slice(start, start + case["batch"])
            yield images[rows].to(DEVICE, non_blocking=True), targets[rows].to(DEVICE, non_blocking=True)


def careful_steps(case: Case, resident: bool = True, compiled: bool = False) -> tuple[Steps, str]:
    """The careful loop: bf16, channels-last, normalization on the device, fused AdamW, clipping; nothing waits."""
    net = network(case).to(DEVICE).train().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    model = torch.compile(net) if compiled else net
    optimizer = torch.optim.AdamW(net.parameters(), LR, weight_decay=0.0, fused=True)
    mean, std = (255 * torch.tensor(values, device=DEVICE).view(1, 3, 1, 1) for values in (MEAN, STD))
    source = batches(case, resident)

    def take(count: int) -> None:
        for _ in range(count):
            chosen, target = next(source)
            images = (chosen.permute(0, 3, 1, 2).float() - mean) / std
            images = images.contiguous(memory_format=torch.channels_last)
            with torch.autocast(DEVICE.type, torch.bfloat16):
                logits = model(images)
            loss = F.cross_entropy(logits.float(), target)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), CLIP, foreach=True)
            optimizer.step()

    take(SETTLING)
    return take, "bf16"


def compare_steps(case: Case, steps: int) -> dict[str, Any]:
    """Images per second of every rival, and the share of the careful loop."""
    rivals: dict[str, Callable[[], tuple[Steps, str]]] = {
        "careful, pixels on the device": lambda: careful_steps(case),
        "careful, pinned memory": lambda: careful_steps(case, resident=False),
        "careful, compiled": lambda: careful_steps(case, compiled=True),
        "finetune, pinned memory": lambda: method_steps(case, "finetune", resident=False),
        **{method: lambda method=method: method_steps(case, method) for method in METHODS},
    }
    ready: dict[str, tuple[Steps, str]] = {}
    failed: dict[str, str] = {}
    for name, make in rivals.items():
        try:
            ready[name] = make()
        except Exception as error:  # one rival that fails must not cost the others
            failed[name] = f"{type(error).__name__}: {str(error)[:200]}"
    seconds: dict[str, list[float]] = {name: [] for name in ready}
    for _ in range(ROUNDS):
        for name, (take, _) in ready.items():
            synchronize()
            begin = time.perf_counter()
            take(steps)
            synchronize()
            seconds[name].append(time.perf_counter() - begin)
    rates = {name: steps * case["batch"] / statistics.median(values) for name, values in seconds.items()}
    base = rates["careful, pixels on the device"]
    rows = {name: {"rate": rate, "share": rate / base, "precision": ready[name][1]} for name, rate in rates.items()}
    return {"case": dict(case), "rows": rows, "failed": failed, "profile": profile_steps(ready["finetune"][0])}


def profile_steps(take: Steps, count: int = 6) -> dict[str, Any]:
    """Where the time of a step goes: kernels by kind, the host, and how busy the device is."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if DEVICE.type == "cuda" else [])]
    begin = time.perf_counter()
    with profile(activities=activities) as found:
        take(count)
        synchronize()
    wall = time.perf_counter() - begin
    events = found.key_averages()
    device = sum(event.self_device_time_total for event in events) / 1e6
    host = sorted(events, key=lambda event: -event.self_cpu_time_total)[:12]
    kernels = sorted(events, key=lambda event: -event.self_device_time_total)[:12]
    return {
        "milliseconds_per_step": 1000 * wall / count,
        "device_busy": device / wall,
        "host": {event.key[:60]: event.self_cpu_time_total / 1000 / count for event in host},
        "kernels": {event.key[:60]: event.self_device_time_total / 1000 / count for event in kernels},
    }


def compare_fisher(case: Case) -> dict[str, Any]:
    """The Fisher diagonal against forward and backward, and against a loop over single images."""
    child, images = ours.child_of(case).to(DEVICE), place(ours.images_of(case), DEVICE)
    names, old = [name for name, _ in child.named_parameters()], [task.name for task in child.tasks[:-1]]
    read = image_reader(images, child)
    net = network(case, 196).to(DEVICE).eval()
    inputs = read(0, case["images"])
    single = min(64, case["images"])

    def backward(size: int, stop: int) -> None:
        for batch in inputs[:stop].split(size):
            net.zero_grad()
            loops.drawn(net(batch)).backward()

    def timed(call: Callable[[], object]) -> float:
        call()
        seconds = []
        for _ in range(3):
            synchronize()
            begin = time.perf_counter()
            call()
            synchronize()
            seconds.append(time.perf_counter() - begin)
        return statistics.median(seconds)

    def measure(precision: FisherPrecision, few: Tensor = inputs, model: nn.Module = child) -> Params:
        targets = {task.name: torch.arange(len(few)) % len(task.classes) for task in child.tasks[:-1]}
        return fisher_diagonal(
            model, lambda start, stop: few[start:stop], len(few), names, old, labels="empirical", targets=targets,
            precision=precision,
        )  # fmt: skip

    def error(precision: FisherPrecision) -> float:
        """The largest relative error of a tensor, on as many images as float64 can afford."""
        found = measure(precision, inputs[:single])
        return max(float((found[name] - value).norm() / value.norm()) for name, value in exact.items() if value.any())

    exact = measure("fp32", inputs[:single].double(), copy.deepcopy(child).double())
    fisher = timed(lambda: fisher_diagonal(child, read, case["images"], names, old))
    whole = timed(lambda: backward(case["batch"], case["images"]))
    one = timed(lambda: backward(1, single)) * case["images"] / single
    sums = {
        precision: {"seconds": timed(partial(measure, precision)), "error": error(precision)}
        for precision in ("fp32", "tf32")
    }
    return {
        "case": dict(case), "seconds": fisher, "over_backward": fisher / whole, "loop_over": one / fisher, "sums": sums
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--seconds", type=float, default=400.0)
    parser.add_argument("--quick", action="store_true", help="one tiny network, to see that it works")
    given = parser.parse_args()
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "no GPU"
    results: dict[str, Any] = {"device": name, "versions": versions(), "steps": [], "fisher": []}
    cases, fishers = (((QUICK, 2),), (QUICK,)) if given.quick else (CASES, FISHERS)
    end = time.monotonic() + given.seconds
    parts = [("steps", compare_steps, case) for case in cases] + [
        ("fisher", compare_fisher, (case,)) for case in fishers
    ]
    for kind, measure, words in parts:
        if time.monotonic() > end:
            break
        try:
            results[kind].append(measure(*words))
        except Exception as error:
            results[kind].append({"case": dict(words[0]), "failed": f"{type(error).__name__}: {str(error)[:300]}"})
        print(json.dumps(results[kind][-1], indent=1), flush=True)
        given.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
