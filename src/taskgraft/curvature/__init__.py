"""Which parameters matter, from per-sample gradients: the diagonal Fisher information, the output sensitivity.

F_jj = mean_i E_{c ~ p(·|x_i)} [ (∂ log p_c(x_i) / ∂θ_j)² ] (Kirkpatrick et al. 2017),
Ω_j = mean_i |∂ Σ_t ‖z_t(x_i)‖² / ∂θ_j| (Aljundi et al. 2018).

One batched backward pass gives the gradient at the output of every layer, from which the sum of squares or magnitudes
of the per-sample parameter gradients follows layer by layer (`layers`, `products`); what has no rule goes through
torch.func (`generic`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from taskgraft import distributed
from taskgraft.allocator import keep_freed_memory
from taskgraft.config import Softmax
from taskgraft.curvature import generic
from taskgraft.curvature.labels import Labels, Pass, cotangent, joined_targets, passes
from taskgraft.curvature.plan import Plan, Read, look
from taskgraft.curvature.products import Power
from taskgraft.curvature.tape import Call, Tape
from taskgraft.models.eval_mode import eval_mode
from taskgraft.types import Outputs, Params

__all__ = ["fisher_diagonal", "output_sensitivity"]

# Images at once. Rates are flat from 32 up; the bytes keep large images from filling the memory.
CHUNK = 32
CHUNK_BYTES = 2**30
# Backward passes whose gradients at the logits are held at once on the generic path.
BLOCK = 16

JOINT = "all outputs"  # the one distribution of a joint softmax, where a task's name would stand

Seed = Callable[[], dict[str, Tensor]]  # a backward pass: task -> gradient at its logits [B, K], made when needed


def fisher_diagonal(
    model: nn.Module,
    read: Read,
    count: int,
    names: Collection[str],
    tasks: Collection[str],
    *,
    labels: Labels = "sampled",
    softmax: Softmax = "per-task",
    targets: Mapping[str, Tensor] | None = None,
    draws: int = 1,
    seed: int = 0,
    chunk: int | None = None,
) -> Params:
    """Measure F_jj = mean_i E_c[(∂ log p_c(x_i)/∂θ_j)²] with the model in eval mode, summed over `tasks`.

    Args:
        model: maps images [B, ...] to {task: logits [B, K]}; its modes, flags, gradients, statistics stay.
        read: `read(start, stop)` gives those images, float, ready for the model, the same at every call.
        count: number of images.
        names: parameters to measure, as in `model.named_parameters()`.
        tasks: the outputs that count; their Fishers add.
        labels: "exact" weighs all classes by p_c, "sampled" draws from p, "empirical" takes `targets`.
        softmax: "per-task" has a distribution p for each of `tasks`, "joint" one over the outputs of all of them.
        targets: task -> int64 [count], -1 where unlabeled; the mean is over the task's labeled images.
        draws: labels drawn per image and task, each a hash of (seed, task, image, draw).
        seed: of the draws.
        chunk: images at once; None lets the size of the activations decide. It changes nothing but rounding.

    Returns:
        Name -> F of the parameter's shape and device, float64 for float64 parameters, else float32.

    Raises:
        ValueError: a senseless request; a model that is random in eval mode or mixes the images of a batch.
    """
    params = _chosen(model, count, names, tasks, chunk)
    _check_labels(count, tasks, labels, softmax, targets, draws)

    def seeds(outputs: Outputs, start: int) -> list[Seed]:
        z = {task: outputs[task].detach().cpu().double() for task in tasks}
        if softmax == "per-task":
            p = {task: logits.softmax(1) for task, logits in z.items()}
            todo = passes(p, start, labels, targets=targets, draws=draws, seed=seed)
            return [partial(_of_label, p, one) for one in todo if one.weights.any()]
        p = {JOINT: torch.cat(list(z.values()), 1).softmax(1)}
        widths = {task: logits.shape[1] for task, logits in z.items()}
        joined = {JOINT: joined_targets(targets, widths)} if labels == "empirical" and targets else None
        todo = passes(p, start, labels, targets=joined, draws=draws, seed=seed)
        return [partial(_of_joint_label, p[JOINT], one, widths) for one in todo if one.weights.any()]

    return _mean_power(model, read, count, params, list(tasks), 2, seeds, chunk)


def output_sensitivity(
    model: nn.Module,
    read: Read,
    count: int,
    names: Collection[str],
    tasks: Collection[str],
    *,
    chunk: int | None = None,
) -> Params:
    """Measure Ω_j = mean_i |∂ Σ_t ‖z_t(x_i)‖² / ∂θ_j|, z_t the logits of task t in eval mode, over `tasks` at once.

    Arguments, result and errors are those of `fisher_diagonal`; no labels are needed. Source: Aljundi et al. 2018,
    "Memory aware synapses: learning what (not) to forget", eq. 2-3 with the squared norm of the output.
    """
    params = _chosen(model, count, names, tasks, chunk)

    def seeds(outputs: Outputs, start: int) -> list[Seed]:
        slopes = {task: 2 * outputs[task].detach() for task in tasks}
        return [lambda: slopes]  # one pass for all tasks: the magnitude is that of their sum

    return _mean_power(model, read, count, params, list(tasks), 1, seeds, chunk)


def _mean_power(
    model: nn.Module,
    read: Read,
    count: int,
    params: Params,
    tasks: list[str],
    power: Power,
    seeds: Callable[[Outputs, int], list[Seed]],
    chunk: int | None,
) -> Params:
    """Average |per-sample gradient|^power; `seeds(logits, start)` lists a chunk's backward passes, which add."""
    keep_freed_memory()
    with _measuring(model):
        plan = look(model, read, count, params, tasks)
        sums = {name: _zeros(p, power == 2 and name in plan.taps_first) for name, p in params.items()}
        loose = _loose_sum(model, plan, tasks, power)
        chunk = chunk or max(1, min(CHUNK, CHUNK_BYTES // plan.bytes_per_image))
        own = distributed.local_slice(count)
        for start in range(own.start, own.stop, chunk):
            images = read(start, min(start + chunk, own.stop))
            outputs, tape = _forward(model, images, plan, sums, power)
            todo = seeds(outputs, start)
            _backward(outputs, tape, todo)
            del outputs, tape  # frees the graph before the next one grows
            if loose:
                _add_loose(loose, images, todo, sums)
    distributed.all_reduce(sums.values())
    return {name: (total / count).contiguous() for name, total in sums.items()}


def _of_label(p: Mapping[str, Tensor], one: Pass) -> dict[str, Tensor]:
    return {one.task: cotangent(p[one.task], one)}


def _of_joint_label(p: Tensor, one: Pass, widths: Mapping[str, int]) -> dict[str, Tensor]:
    """The gradient at the joint logits, divided among the tasks whose outputs they are."""
    return dict(zip(widths, cotangent(p, one).split(list(widths.values()), 1), strict=True))


def _chosen(model: nn.Module, count: int, names: Collection[str], tasks: Collection[str], chunk: int | None) -> Params:
    """Check the request; give the parameters that it names."""
    params = dict(model.named_parameters())
    unknown = sorted(set(names) - set(params))
    if unknown:
        raise ValueError(f"no parameter {unknown[0]!r} in the model: name some of model.named_parameters()")
    if count < 1:
        raise ValueError(f"count is {count}: the mean needs at least one image")
    if not tasks:
        raise ValueError("no tasks: name at least one output of the model")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk is {chunk}: take at least one image at a time, or None")
    return {name: params[name] for name in names}


def _check_labels(
    count: int,
    tasks: Collection[str],
    labels: Labels,
    softmax: Softmax,
    targets: Mapping[str, Tensor] | None,
    draws: int,
) -> None:
    if draws < 1:
        raise ValueError(f"draws is {draws}: draw at least one label per image")
    if labels not in ("exact", "sampled", "empirical"):
        raise ValueError(f"labels is {labels!r}: choose exact, sampled or empirical")
    if labels == "empirical" and softmax == "joint":  # an image has its label from whichever task it is labeled for
        tasks = [task for task in tasks if targets and task in targets] or tasks
    for task in tasks if labels == "empirical" else ():
        if targets is None or task not in targets:
            raise ValueError(f"labels='empirical' needs targets[{task!r}]: give them or choose sampled")
        if targets[task].shape != (count,) or not (targets[task] >= 0).any():
            raise ValueError(f"targets[{task!r}] must have {count} entries, at least one of them not -1")


@contextmanager
def _measuring(model: nn.Module) -> Iterator[None]:
    """Put the model in eval mode with no parameter requiring a gradient; put everything back afterwards."""
    flags = [(param, param.requires_grad) for param in model.parameters()]
    try:
        for param, _ in flags:
            param.requires_grad_(False)
        with eval_mode(model), torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for param, flag in flags:
            param.requires_grad_(flag)


def _zeros(param: Tensor, taps_first: bool) -> Tensor:
    """Start a running sum; a kernel [O, C, k, k] may lie in memory as [k, k, O, C]."""
    dtype = torch.float64 if param.dtype == torch.float64 else torch.float32
    if taps_first:
        out, into, *kernel = param.shape
        return torch.zeros(*kernel, out, into, dtype=dtype, device=param.device).permute(2, 3, 0, 1)
    return torch.zeros(param.shape, dtype=dtype, device=param.device)


def _forward(model: nn.Module, images: Tensor, plan: Plan, sums: Params, power: Power) -> tuple[Outputs, Tape]:
    """Run the model such that backward adds the powers of the parameters with a rule to `sums`."""
    size = len(images)

    def receive(call: Call, g: Tensor) -> None:
        chosen = {role: sums[name] for role, name in call.names.items()}
        dtype = next(iter(chosen.values())).dtype
        a = g if call.reading.input is None else call.reading.input
        call.reading.add(a.to(dtype), g.to(dtype), size, chosen, power)

    with Tape(plan.fast, receive) as tape:
        outputs = model(images)
    return outputs, tape


def _backward(outputs: Outputs, tape: Tape, todo: list[Seed]) -> None:
    """Run the backward passes; the hooks of the tape do the adding."""
    for at, seed in enumerate(todo, start=1):
        # Logits without a graph depend on no parameter that has a rule.
        seeds = {task: rows.to(outputs[task]) for task, rows in seed().items() if outputs[task].requires_grad}
        if seeds:
            logits = [outputs[task] for task in seeds]
            torch.autograd.grad(
                logits, tape.leaves, list(seeds.values()), retain_graph=at < len(todo), allow_unused=True
            )


def _loose_sum(model: nn.Module, plan: Plan, tasks: list[str], power: Power) -> generic.Sum | None:
    """Prepare the generic path for parameters without a rule; None if the logits depend on none."""
    used = generic.reached(model, plan.loose, plan.images, tasks)
    params = {name: plan.loose[name].detach() for name in plan.loose if name in used}
    return generic.sum_for(model, params, plan.images, tasks, power) if params else None


def _add_loose(add: generic.Sum, images: Tensor, todo: list[Seed], sums: Params) -> None:
    for at in range(0, len(todo), BLOCK):
        seeds = [{task: rows.to(images) for task, rows in seed().items()} for seed in todo[at : at + BLOCK]]
        for name, total in add(images, seeds).items():
            sums[name] += total
