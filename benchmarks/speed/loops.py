"""Training and evaluation as people write them without taskgraft: the first loop, the careful one, timm's."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from benchmarks.speed.networks import LR, MEAN, OLD, STD, Case, labels, network, normalized, pixels
from benchmarks.speed.worker import Ready, Work
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.utils import AverageMeter
from torch import Tensor, nn

CLIP = 1.0  # taskgraft's default, so that the careful loop does the same work
Step = Callable[[Tensor, Tensor], None]


def plain(case: Case) -> Ready:
    """What one writes first: fp32, the default memory layout, AdamW as it comes, no clipping."""
    net = network(case).train()
    optimizer = torch.optim.AdamW(net.parameters(), LR, weight_decay=0.0)

    def step(chosen: Tensor, target: Tensor) -> None:
        loss = F.cross_entropy(net(normalized(chosen)), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return Ready(_batches(case, step), "fp32")


def careful(case: Case) -> Ready:
    """The best settings a careful user would choose: channels-last, bf16 where it is faster, a fused optimizer.

    Its process keeps freed memory as PyTorch's tuning guide advises, and it clips the gradient as taskgraft does.
    """
    seconds = {}
    for bf16 in (False, True):
        call = _batches(case, _careful(case, bf16))
        call()
        begin = time.perf_counter()
        call()
        seconds[bf16] = time.perf_counter() - begin
    best = seconds[True] < seconds[False]
    return Ready(_batches(case, _careful(case, best)), "bf16" if best else "fp32-channels-last")


def _careful(case: Case, bf16: bool) -> Step:
    net = network(case).train().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.AdamW(net.parameters(), LR, weight_decay=0.0, fused=True)

    def step(chosen: Tensor, target: Tensor) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = net(normalized(chosen, torch.channels_last))
        loss = F.cross_entropy(logits.float(), target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), CLIP, foreach=True)
        optimizer.step()

    return step


def timm_script(case: Case) -> Ready:
    """One update of timm's training script at its defaults (fp32, label smoothing, its meter), with --opt adamw."""
    net = network(case).train()
    optimizer = create_optimizer_v2(net, opt="adamw", lr=LR, weight_decay=0.0)
    loss_of, meter = LabelSmoothingCrossEntropy(smoothing=0.1), AverageMeter()
    mean, std = (torch.tensor([255 * x for x in value]).view(1, 3, 1, 1) for value in (MEAN, STD))

    def step(chosen: Tensor, target: Tensor) -> None:
        inputs = chosen.permute(0, 3, 1, 2).contiguous().float().sub_(mean).div_(std)  # its prefetching loader
        loss = loss_of(net(inputs), target)
        loss.backward(create_graph=False)
        optimizer.step()
        meter.update(loss.item(), len(inputs))
        optimizer.zero_grad()

    return Ready(_batches(case, step), "fp32")


def forward_backward(case: Case) -> Ready:
    """Plain forward and backward of the log-likelihood of drawn labels, in eval mode: what a Fisher cannot do without.

    Under the same batch and precision (fp32) as the Fisher.
    """
    net = network(case, OLD).eval()
    found = normalized(pixels(case))

    def call() -> Work:
        for batch in found.split(case["batch"]):
            net.zero_grad()
            drawn(net(batch)).backward()
        return Work(case["images"])

    return Ready(call)


def validate(case: Case) -> Ready:
    """Evaluation as one writes it first: eval mode, no gradients, the training batch."""
    net, found = network(case, OLD).eval(), pixels(case)

    def call() -> Work:
        with torch.no_grad():
            torch.cat([net(normalized(batch)) for batch in found.split(case["batch"])])
        return Work(case["images"])

    return Ready(call)


def validate_carefully(case: Case) -> Ready:
    """Inference mode, channels-last, the fastest of four batches; fp32, as taskgraft's."""
    net = network(case, OLD).eval().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    found = pixels(case)

    def ask(size: int) -> None:
        with torch.inference_mode():
            torch.cat([net(normalized(batch, torch.channels_last)) for batch in found.split(size)])

    best = fastest(ask, [size for size in (8, 16, 32, 64) if size <= case["images"]])

    def call() -> Work:
        ask(best)
        return Work(case["images"])

    return Ready(call, f"batch {best}")


def fastest(ask: Callable[[int], object], sizes: list[int]) -> int:
    """The size whose second call is fastest; a size that fails is passed over, all failing raises the last reason."""
    seconds: dict[int, float] = {}
    reason: Exception | None = None
    for size in sizes:
        try:
            ask(size)
            begin = time.perf_counter()
            ask(size)
            seconds[size] = time.perf_counter() - begin
        except (RuntimeError, MemoryError) as error:
            reason = error
    if not seconds:
        raise reason or ValueError("no size to try")
    return min(seconds, key=lambda size: seconds[size])


def drawn(logits: Tensor) -> Tensor:
    """Sum over images of log p(label), the label drawn from the model's own distribution."""
    logs = logits.log_softmax(1)
    return logs.gather(1, torch.multinomial(logs.detach().exp(), 1)).sum()


def _batches(case: Case, step: Step) -> Callable[[], Work]:
    found = pixels(case)
    target = labels(len(found))

    def call() -> Work:
        rows = torch.randint(0, len(found), (case["batch"],))
        step(found[rows], target[rows])
        return Work(case["batch"])

    return call
