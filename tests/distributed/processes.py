"""Functions that each process of a group calls, and the group that calls them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from taskgraft import TaskgraftError, distributed, pytree
from taskgraft.distributed import group
from taskgraft.distributed.heartbeat import monitor
from taskgraft.errors import SetupError
from taskgraft.models import inference
from taskgraft.models.inference import compute_features
from taskgraft.training import loop
from toys import OLD, RUN, make_images, parent, run_to_end, start_run, weights


def run_in_group(count: int, folder: Path, function: Callable[[], Any]) -> list[Any]:
    """What `function` returns in each of `count` processes."""
    torch.multiprocessing.start_processes(_run, (count, str(folder), function), nprocs=count, start_method="fork")
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(count)]


def _run(rank: int, count: int, folder: str, function: Callable[[], Any]) -> None:
    store = torch.distributed.FileStore(f"{folder}/store", count)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=count)
    os.environ["RANK"] = str(rank)
    torch.save(function(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


METHODS = (
    "finetune", "distill", "distill(teacher=live)", "lwf", "mas(images=20)", "si", "taps", "branch", "wise",
    "ladder(dropout=0)",  # what is dropped is drawn by each process
    "ewc(images=20, labels=exact)",  # a drawn label may turn into another one when a probability moves by a rounding
    "replay + distill", "ewc(images=20, labels=exact) + distill",
)  # fmt: skip


def every_method() -> dict[str, dict[str, Tensor]]:
    """The child's weights and memory, after a run of each method."""
    result = {}
    for notation in METHODS:
        child, memory = run_to_end(notation)
        result[notation] = {**pytree.state(child), **{f"memory/{name}": v for name, v in pytree.flatten(memory)}}
    return result


def after_three_steps() -> dict[str, Tensor]:
    """A run's state halfway: weights, and the logits recorded so far."""
    state, method, images = start_run("distill")
    state = loop.fit(state, method, images, RUN, until=3)
    return {**pytree.state(state.classifier), **dict(pytree.flatten(state.memory))}


def in_micro_batches() -> dict[str, Tensor]:
    """After two steps in micro-batches, with BatchNorm's statistics frozen and moving; batches divide unevenly."""
    result: dict[str, Tensor] = {}
    for norm in ("frozen", "train"):
        config = replace(RUN, micro_batches=3, norm=norm)
        state, method, images = start_run("distill", config)
        state = loop.fit(state, method, images, config, until=2)
        result |= {f"{norm} {name}": value for name, value in pytree.state(state.classifier).items()}
    return result


def of_three() -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    return after_three_steps(), in_micro_batches(), logits_and_features()


class Towers(nn.Module):
    """Two towers of more than a bucket each: one layer is used twice, one never, and one is frozen."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.left, self.right = nn.Linear(8, 600), nn.Linear(600, 600), nn.Linear(600, 600)
            self.unused, self.frozen = nn.Linear(600, 600), nn.Linear(600, 600).requires_grad_(False)

    def forward(self, values: Tensor, left_first: bool) -> Tensor:
        hidden = self.first(values).tanh()
        branches = [lambda: self.left(self.left(hidden).tanh()), lambda: self.frozen(self.right(hidden).tanh())]
        outputs = [branch() for branch in (branches if left_first else branches[::-1])]
        return torch.stack(outputs).sum()


def towers() -> tuple[dict[str, Tensor | None], dict[str, Tensor | None], int]:
    """Sums of gradients that arrive in another order in each process, and sums formed afterwards; how many travelled
    before the last gradient was there."""
    model, images = Towers(), torch.linspace(-1, 1, 56).view(7, 8)[distributed.local_slice(7)]
    left_first = distributed.rank() == 0
    model(images, left_first).backward()
    distributed.all_reduce([value.grad for value in model.parameters() if value.grad is not None])
    expected = {name: value.grad for name, value in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    sent, early = [], []
    send, group.BUCKET = dist.all_reduce, 2**20
    model.first.weight.register_hook(lambda grad: early.append(len(sent)))
    dist.all_reduce = lambda *args, **options: (sent.append(1), send(*args, **options))[1]
    loss = model(images, left_first)
    with distributed.sum_gradients(model.parameters(), [loss]):
        loss.backward()
    dist.all_reduce = send
    return {name: value.grad for name, value in model.named_parameters()}, expected, early[0]


def logits_and_features() -> dict[str, Tensor]:
    """Logits and features on numbers of images that do not divide evenly, down to one."""
    model, result = parent(), {}
    for count in (7, 1):
        images = make_images(count, OLD, 3)
        result[f"logits {count}"] = torch.from_numpy(inference.predict(model, images, 2).logits[OLD.name])
        result[f"features {count}"] = compute_features(model, images, 2)
    return result


def batch_norm() -> dict[str, Tensor]:
    """BatchNorm's output, gradients and running statistics on this process's share of 7 images."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        images, weight, bias = torch.randn(7, 3, 4, 5) * 3 + 10, torch.rand(3), torch.rand(3)
        grad = torch.randn(7, 3, 4, 5)
    mean, var = torch.zeros(3), torch.ones(3)
    share = images[distributed.local_slice(7)].requires_grad_()
    weight, bias = weight.requires_grad_(), bias.requires_grad_()
    with distributed.sync_batchnorm():
        output = F.batch_norm(share, mean, var, weight, bias, True, 0.1, 1e-5)
    output = distributed.all_gather(output, 7)
    (output * grad).sum().backward()
    assert weight.grad is not None
    assert bias.grad is not None
    assert share.grad is not None
    distributed.all_reduce([weight.grad, bias.grad])
    image_grad = distributed.all_gather(share.grad, 7)
    grads = {"images": image_grad, "weight": weight.grad, "bias": bias.grad}
    return {"output": output.detach(), "mean": mean, "var": var, **grads}


def broadcasts() -> list[str]:
    """What the main process returns and raises reaches all; and who works first."""
    results = [distributed.broadcast(lambda: f"made by {distributed.rank()}")]
    try:
        distributed.broadcast(raise_error)
    except TaskgraftError as error:
        results.append(f"{error} ({error.exit_code})")
    results.append(distributed.main_process_first(lambda: f"own {distributed.rank()}"))
    values = torch.full((3,), float(distributed.rank()))
    distributed.broadcast_tensors([values])
    return [*results, str(values.tolist())]


def raise_error() -> None:
    raise SetupError("no room")


def failures() -> dict[str, Any]:
    """A gradient that is infinite in the last process alone; then that process is stopped until another notices."""
    state, method, images = start_run("distill")
    state = loop.fit(state, method, images, RUN, until=3)
    before = weights(state)
    weight = next(value for value in state.classifier.parameters() if value.requires_grad)
    hook = weight.register_hook(lambda grad: grad * (torch.inf if distributed.rank() else 1.0))
    try:
        loop.train_step(state, method, images, RUN)
        message = "no error"
    except TaskgraftError as error:
        message = f"{error} ({error.exit_code})"
    hook.remove()
    unchanged = all(torch.equal(value, before[name]) for name, value in state.classifier.named_parameters())
    return {"message": message, "unchanged": unchanged, "silent": _stop_for_a_while()}


def _stop_for_a_while() -> list[int]:
    """Which processes were found silent while the last one was stopped; whoever notices wakes it."""
    store = torch.distributed.PrefixStore("signs", torch.distributed.distributed_c10d._get_default_store())
    silent: list[int] = []
    pid = torch.tensor([float(os.getpid())], dtype=torch.float64)
    pids = [int(pid) for pid in distributed.all_gather(pid, distributed.world_size()).tolist()]

    def wake(rank: int) -> None:
        silent.append(rank)
        os.kill(pids[rank], signal.SIGCONT)

    with monitor(store.clone(), distributed.rank(), distributed.world_size(), 1.0, wake):
        if distributed.rank():
            os.kill(os.getpid(), signal.SIGSTOP)
        distributed.broadcast(lambda: None)
        distributed.all_gather(pid, distributed.world_size())  # waits here for the process that is stopped
    return silent
