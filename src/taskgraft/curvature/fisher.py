"""How much each parameter matters, from per-sample gradients: diagonal Fisher information and output sensitivity.

F_jj = mean_i E_{c ~ p(·|x_i)} [ (∂ log p_c(x_i) / ∂θ_j)² ] (Kirkpatrick et al. 2017),
Ω_j = mean_i |∂ Σ_t ‖z_t(x_i)‖² / ∂θ_j| (Aljundi et al. 2018).

One batched backward pass gives the gradient at the output of every layer, from which the sum of squares or magnitudes
of the per-sample parameter gradients follows layer by layer (`layer_rules`, `per_sample_sums`); parameters without a
rule go through torch.func (`fallback`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from taskgraft import distributed
from taskgraft.allocator import keep_freed_memory
from taskgraft.config import FisherPrecision, Softmax
from taskgraft.curvature import fallback
from taskgraft.curvature.labels import Labels, Pass, compute_cotangent, join_targets, list_passes
from taskgraft.curvature.per_sample_sums import Power
from taskgraft.curvature.probe import Probe, ReadImages, probe_model
from taskgraft.curvature.products import full_float32, tensor_cores, use_tensor_cores
from taskgraft.curvature.sizes import sizes_on
from taskgraft.curvature.tape import Call, Tape
from taskgraft.models.eval_mode import eval_mode
from taskgraft.types import Outputs, Params

# Backward passes whose gradients at the logits are held at once by the fallback.
FALLBACK_PASSES = 16

JOINT = "all outputs"  # stands for a task's name where one softmax covers all outputs; seeds the drawn labels

Cotangent = Callable[[], dict[str, Tensor]]  # of one backward pass: task -> gradient at its logits [B, K], lazily


def fisher_diagonal(
    model: nn.Module,
    read: ReadImages,
    count: int,
    names: Collection[str],
    tasks: Collection[str],
    *,
    labels: Labels = "sampled",
    softmax: Softmax = "per-task",
    targets: Mapping[str, Tensor] | None = None,
    draws: int = 1,
    seed: int = 0,
    first: int = 0,
    chunk: int | None = None,
    precision: FisherPrecision = "auto",
) -> Params:
    """Measure F_jj = mean_i E_c[(∂ log p_c(x_i)/∂θ_j)²] with the model in eval mode, summed over `tasks`.

    Args:
        model: Maps images [B, ...] to {task: logits [B, K]}; left as it was, modes and flags included.
        read: `read(start, stop)` returns those images as float, preprocessed, the same at every call.
        count: Number of images.
        names: Parameters to measure, named as in `model.named_parameters()`.
        tasks: The outputs that count; their Fisher diagonals add.
        labels: "exact" weights all classes by p_c, "sampled" draws from p, "empirical" uses `targets`.
        softmax: "per-task" for a distribution p per task, "joint" for one over the outputs of all `tasks`.
        targets: Task -> int64 [count], -1 where unlabeled; the mean is over the task's labeled images.
        draws: Labels drawn per image and task, each a hash of (seed, task, image, draw).
        seed: Random seed of the draws.
        first: Number of the first image, for its draws, where a larger set is measured in parts.
        chunk: Images per forward pass; None chooses by the size of the activations. Affects rounding only.
        precision: "tf32" rounds the operands of the sums to 10 bits, for tensor cores; "auto" does on a GPU that has
            them.

    Returns:
        Name -> F of the parameter's shape and device, float64 for float64 parameters, else float32.

    Raises:
        ValueError: The request is inconsistent, or the model is random in eval mode or mixes the images of a batch.
    """
    params = _select_parameters(model, count, names, tasks, chunk)
    _check_labels(count, tasks, labels, softmax, targets, draws)

    def cotangents(outputs: Outputs, start: int) -> list[Cotangent]:
        start += first if labels == "sampled" else 0  # targets are those of this part
        z = {task: outputs[task].detach().cpu().double() for task in tasks}
        if softmax == "per-task":
            p = {task: logits.softmax(1) for task, logits in z.items()}
            passes = list_passes(p, start, labels, targets=targets, draws=draws, seed=seed)
            return [partial(_label_cotangent, p, item) for item in passes if item.weights.any()]
        p = {JOINT: torch.cat(list(z.values()), 1).softmax(1)}
        widths = {task: logits.shape[1] for task, logits in z.items()}
        joined = {JOINT: join_targets(targets, widths)} if labels == "empirical" and targets else None
        passes = list_passes(p, start, labels, targets=joined, draws=draws, seed=seed)
        return [partial(_joint_label_cotangent, p[JOINT], item, widths) for item in passes if item.weights.any()]

    return _mean_of_powers(model, read, count, params, list(tasks), 2, cotangents, chunk, precision)


def output_sensitivity(
    model: nn.Module,
    read: ReadImages,
    count: int,
    names: Collection[str],
    tasks: Collection[str],
    *,
    chunk: int | None = None,
    precision: FisherPrecision = "auto",
) -> Params:
    """Measure Ω_j = mean_i |∂ Σ_t ‖z_t(x_i)‖² / ∂θ_j|, z_t the logits of task t in eval mode, over `tasks` at once.

    Source: Aljundi et al. 2018, "Memory aware synapses: learning what (not) to forget", eq. 2-3 with the squared norm
    of the output. Needs no labels.

    Args:
        model: As in `fisher_diagonal`, like all arguments.
        read: Returns images by position.
        count: Number of images.
        names: Parameters to measure.
        tasks: The outputs whose squared norms are summed.
        chunk: Images per forward pass, or None.
        precision: Of the sums.

    Returns:
        Name -> Ω of the parameter's shape and device, float64 for float64 parameters, else float32.

    Raises:
        ValueError: As `fisher_diagonal`.
    """
    params = _select_parameters(model, count, names, tasks, chunk)

    def cotangents(outputs: Outputs, start: int) -> list[Cotangent]:
        gradients = {task: 2 * outputs[task].detach() for task in tasks}
        return [lambda: gradients]  # one pass for all tasks: the magnitude is that of their sum

    return _mean_of_powers(model, read, count, params, list(tasks), 1, cotangents, chunk, precision)


def _mean_of_powers(
    model: nn.Module,
    read: ReadImages,
    count: int,
    params: Params,
    tasks: list[str],
    power: Power,
    cotangents: Callable[[Outputs, int], list[Cotangent]],
    chunk: int | None,
    precision: FisherPrecision,
) -> Params:
    """Average |per-sample gradient|^power; `cotangents(logits, start)` lists a chunk's backward passes."""
    keep_freed_memory()
    device = next((param.device for param in params.values()), torch.device("cpu"))
    rounds = use_tensor_cores(precision, device)
    with full_float32(device), _eval_without_parameter_gradients(model):
        probe = probe_model(model, read, count, params, tasks)
        sums = {name: _new_sum(p, power == 2 and name in probe.kernel_first) for name, p in params.items()}
        fallback_sum = _fallback_sum(model, probe, tasks, power)
        sizes = sizes_on(device)
        chunk = chunk or max(1, min(sizes.images, sizes.activations // probe.bytes_per_image))
        local = distributed.local_slice(count)
        for start in range(local.start, local.stop, chunk):
            images = read(start, min(start + chunk, local.stop))
            outputs, tape = _forward(model, images, probe, sums, power, rounds)
            passes = cotangents(outputs, start)
            _backward(outputs, tape, passes)
            del outputs, tape  # frees the graph before the next one grows
            if fallback_sum:
                _add_fallback(fallback_sum, images, passes, sums)
    distributed.all_reduce(sums.values())
    return {name: (total / count).contiguous() for name, total in sums.items()}


def _label_cotangent(p: Mapping[str, Tensor], item: Pass) -> dict[str, Tensor]:
    return {item.task: compute_cotangent(p[item.task], item)}


def _joint_label_cotangent(p: Tensor, item: Pass, widths: Mapping[str, int]) -> dict[str, Tensor]:
    """Return the gradient at the joint logits, split among the tasks."""
    return dict(zip(widths, compute_cotangent(p, item).split(list(widths.values()), 1), strict=True))


def _select_parameters(
    model: nn.Module, count: int, names: Collection[str], tasks: Collection[str], chunk: int | None
) -> Params:
    """Check the request and return the parameters that it names."""
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
def _eval_without_parameter_gradients(model: nn.Module) -> Iterator[None]:
    """Put the model in eval mode with no parameter requiring a gradient, and restore everything afterwards."""
    flags = [(param, param.requires_grad) for param in model.parameters()]
    try:
        for param, _ in flags:
            param.requires_grad_(False)
        with eval_mode(model), torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for param, flag in flags:
            param.requires_grad_(flag)


def _new_sum(param: Tensor, kernel_first: bool) -> Tensor:
    """Return a running sum of zeros; a kernel [O, C, k, k] may be laid out in memory as [k, k, O, C]."""
    dtype = torch.float64 if param.dtype == torch.float64 else torch.float32
    if kernel_first:
        outputs, inputs, *kernel = param.shape
        return torch.zeros(*kernel, outputs, inputs, dtype=dtype, device=param.device).permute(2, 3, 0, 1)
    return torch.zeros(param.shape, dtype=dtype, device=param.device)


def _forward(
    model: nn.Module, images: Tensor, probe: Probe, sums: Params, power: Power, rounds: bool
) -> tuple[Outputs, Tape]:
    """Run the model such that backward adds the powers of the parameters with a rule to `sums`."""
    size = len(images)

    def receive(call: Call, g: Tensor) -> None:
        selected = {role: sums[name] for role, name in call.names.items()}
        dtype = next(iter(selected.values())).dtype
        a = g if call.use.input is None else call.use.input
        with tensor_cores(rounds, g.device):
            call.use.add(a.to(dtype), g.to(dtype), size, selected, power)

    with Tape(probe.with_rule, receive) as tape:
        outputs = model(images)
    return outputs, tape


def _backward(outputs: Outputs, tape: Tape, passes: list[Cotangent]) -> None:
    """Run the backward passes; the hooks of the tape add to the sums."""
    for number, cotangent in enumerate(passes, start=1):
        # Logits without a graph depend on no parameter that has a rule.
        gradients = {task: rows.to(outputs[task]) for task, rows in cotangent().items() if outputs[task].requires_grad}
        if gradients:
            logits, retain = [outputs[task] for task in gradients], number < len(passes)
            torch.autograd.grad(logits, tape.leaves, list(gradients.values()), retain_graph=retain, allow_unused=True)


def _fallback_sum(model: nn.Module, probe: Probe, tasks: list[str], power: Power) -> fallback.SumPowers | None:
    """Prepare the fallback for parameters without a rule; None if the logits depend on none."""
    reachable = fallback.find_reachable(model, probe.without_rule, probe.images, tasks)
    params = {name: value.detach() for name, value in probe.without_rule.items() if name in reachable}
    return fallback.choose_sum(model, params, probe.images, tasks, power) if params else None


def _add_fallback(add: fallback.SumPowers, images: Tensor, passes: list[Cotangent], sums: Params) -> None:
    for start in range(0, len(passes), FALLBACK_PASSES):
        block = passes[start : start + FALLBACK_PASSES]
        gradients = [{task: rows.to(images) for task, rows in cotangent().items()} for cotangent in block]
        for name, total in add(images, gradients).items():
            sums[name] += total
