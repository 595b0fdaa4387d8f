"""Work done by several processes that are one run, for the tests: spawn them, let each call a function of this file."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from taskgraft import TaskgraftError, distributed, pytree
from taskgraft.distributed.heartbeat import monitor
from taskgraft.errors import SetupError
from taskgraft.models import inference
from taskgraft.models.inference import compute_features
from taskgraft.training import loop
from toys import OLD, RUN, finished, parent, pictures, started, weights


def together(count: int, folder: Path, function: Callable[[], Any]) -> list[Any]:
    """What `function` returns in each of `count` processes."""
    torch.multiprocessing.spawn(_one, (count, str(folder), function), nprocs=count)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(count)]


def _one(rank: int, count: int, folder: str, function: Callable[[], Any]) -> None:
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(f"{folder}/store", count)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=count)
    os.environ["RANK"] = str(rank)
    found = function()
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


METHODS = (
    "finetune", "distill", "distill(teacher=live)", "lwf", "mas(images=20)", "si", "taps", "branch", "wise",
    "ladder(dropout=0)",  # what is dropped is drawn by each process
    "ewc(images=20, labels=exact)",  # a drawn label may turn into another one when a probability moves by a rounding
    "replay + distill", "ewc(images=20, labels=exact) + distill",
)  # fmt: skip


def every_method() -> dict[str, dict[str, Tensor]]:
    """The child's weights and what it keeps, after a run of each method."""
    found = {}
    for notation in METHODS:
        child, memory = finished(notation)
        found[notation] = {**pytree.state(child), **{f"kept/{name}": v for name, v in pytree.flatten(memory)}}
    return found


def after_three_steps() -> dict[str, Tensor]:
    """A run's state in mid-way: weights, and the answers recorded so far."""
    state, method, images = started("distill")
    state = loop.fit(state, method, images, RUN, until=3)
    return {**pytree.state(state.classifier), **dict(pytree.flatten(state.memory))}


def measures() -> dict[str, Tensor]:
    """Logits and features on numbers of images that do not divide evenly, down to one."""
    model, found = parent(), {}
    for count in (7, 1):
        images = pictures(count, OLD, 3)
        found[f"logits {count}"] = torch.from_numpy(inference.predict(model, images, 2).logits[OLD.name])
        found[f"features {count}"] = compute_features(model, images, 2)
    return found


def normalized() -> dict[str, Tensor]:
    """BatchNorm's output, gradients and running statistics on this process's share of 7 images."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        images, weight, bias = torch.randn(7, 3, 4, 5) * 3 + 10, torch.rand(3), torch.rand(3)
        slope = torch.randn(7, 3, 4, 5)
    mean, var = torch.zeros(3), torch.ones(3)
    own = images[distributed.local_slice(7)].requires_grad_()
    weight, bias = weight.requires_grad_(), bias.requires_grad_()
    with distributed.sync_batchnorm():
        output = F.batch_norm(own, mean, var, weight, bias, True, 0.1, 1e-5)
    whole = distributed.all_gather(output, 7)
    (whole * slope).sum().backward()
    assert weight.grad is not None
    assert bias.grad is not None
    assert own.grad is not None
    distributed.all_reduce([weight.grad, bias.grad])
    inner = distributed.all_gather(own.grad, 7)
    return {"output": whole.detach(), "images": inner, "weight": weight.grad, "bias": bias.grad, "m": mean, "v": var}


def orders() -> list[str]:
    """What the chief makes and what it refuses reaches all; and who works first."""
    said = [distributed.broadcast(lambda: f"made by {distributed.rank()}")]
    try:
        distributed.broadcast(refuse)
    except TaskgraftError as error:
        said.append(f"{error} ({error.exit_code})")
    said.append(distributed.main_process_first(lambda: f"own {distributed.rank()}"))
    values = torch.full((3,), float(distributed.rank()))
    distributed.broadcast_tensors([values])
    return [*said, str(values.tolist())]


def refuse() -> None:
    raise SetupError("no room")


def in_trouble() -> dict[str, Any]:
    """A gradient that is infinite in the last process alone; then that process is stopped until somebody notices."""
    state, method, images = started("distill")
    state = loop.fit(state, method, images, RUN, until=3)
    before = weights(state)
    weight = next(value for value in state.classifier.parameters() if value.requires_grad)
    hook = weight.register_hook(lambda slope: slope * (torch.inf if distributed.rank() else 1.0))
    try:
        loop.train_step(state, method, images, RUN)
        said = "it went on"
    except TaskgraftError as error:
        said = f"{error} ({error.exit_code})"
    hook.remove()
    same = all(torch.equal(value, before[name]) for name, value in state.classifier.named_parameters())
    return {"said": said, "same": same, "silent": _stopped_for_a_while()}


def _stopped_for_a_while() -> list[int]:
    """Which processes were found silent, while the last one was stopped; whoever finds it wakes it."""
    store = torch.distributed.PrefixStore("signs", torch.distributed.distributed_c10d._get_default_store())
    found: list[int] = []
    mine = torch.tensor([float(os.getpid())], dtype=torch.float64)
    pids = [int(pid) for pid in distributed.all_gather(mine, distributed.world_size()).tolist()]

    def silent(rank: int) -> None:
        found.append(rank)
        os.kill(pids[rank], signal.SIGCONT)

    with monitor(store.clone(), distributed.rank(), distributed.world_size(), 2.0, silent):
        if distributed.rank():
            os.kill(os.getpid(), signal.SIGSTOP)
        distributed.broadcast(lambda: None)
        distributed.all_gather(
            mine, distributed.world_size()
        )  # the first process waits here for the one that is stopped
    return found
