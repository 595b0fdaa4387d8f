"""How much each parameter of any network matters, measured on the batches of a loader."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from taskgraft import distributed
from taskgraft.config import FisherPrecision
from taskgraft.curvature import fisher
from taskgraft.curvature.labels import Labels
from taskgraft.errors import InputError, first_line
from taskgraft.models.eval_mode import eval_mode
from taskgraft.regularizers.outputs import OUTPUT, NamedOutputs
from taskgraft.types import Params

BLOCK = 256  # images that are held at once
PREFIX = "network."  # of the parameters of NamedOutputs

Loader = Iterable[Any] | Dataset[Any]  # of batches (inputs, labels), or of inputs alone


class Block(NamedTuple):
    """Some images of a loader: inputs [B, ...] float, and the labels that came with them."""

    inputs: Tensor
    labels: Any


Measure = Callable[[NamedOutputs, Block, list[str], list[str], int], Params]


def fisher_diagonal(
    model: nn.Module,
    loader: Loader,
    *,
    labels: Labels = "sampled",
    images: int | None = None,
    tasks: Collection[str] | None = None,
    parameters: Collection[str] | None = None,
    draws: int = 1,
    seed: int = 0,
    precision: FisherPrecision = "auto",
) -> Params:
    """Measure the diagonal Fisher information of any network, exactly, from the gradients of single images.

    F_jj = mean over images of E[(d log p_c / d theta_j)^2], in eval mode (Kirkpatrick et al. 2017). Not the square of
    a batch's mean gradient: the size of the batches changes nothing but rounding.

    Args:
        model: Returns logits [B, K], or {name: logits} with one softmax each. Left as it was.
        loader: Batches (inputs, labels) or inputs alone; a Dataset; or one pair (inputs, labels). Read once.
        labels: Over which labels the expectation is taken: "sampled" draws them from the model's own predictions,
            "exact" weights all classes by them, "empirical" takes those of the loader.
        images: Use only the first ones; shuffle a loader that is sorted by class. None = all.
        tasks: The outputs that count, where there are several; their Fisher diagonals add. None = all.
        parameters: Names of the parameters to measure; None = all that require a gradient.
        draws: Labels drawn per image, for "sampled".
        seed: Random seed of the draws.
        precision: Of the sums on a GPU: "tf32" computes them on tensor cores, "fp32" does not; "auto" = by the GPU.

    Returns:
        Name -> F, of the parameter's shape and device.

    Raises:
        InputError: The loader gives no such batches, or the model mixes the images of a batch or is random in eval
            mode.
    """

    def measure(network: NamedOutputs, block: Block, names: list[str], outputs: list[str], first: int) -> Params:
        targets = _read_targets(block.labels, outputs) if labels == "empirical" else None
        return fisher.fisher_diagonal(
            network, lambda start, stop: block.inputs[start:stop], len(block.inputs), names, outputs,
            labels=labels, targets=targets, draws=draws, seed=seed, first=first, precision=precision,
        )  # fmt: skip

    return _average(model, loader, measure, images, tasks, parameters)


def output_sensitivity(
    model: nn.Module,
    loader: Loader,
    *,
    images: int | None = None,
    tasks: Collection[str] | None = None,
    parameters: Collection[str] | None = None,
) -> Params:
    """Measure mean_i |d ||z(x_i)||^2 / d theta_j| of any network (Aljundi et al. 2018); arguments as `fisher_diagonal`.

    Args:
        model: Returns logits [B, K], or several by name.
        loader: Batches; labels are not read.
        images: Use only the first ones.
        tasks: The outputs that count.
        parameters: Names of the parameters to measure.

    Raises:
        InputError: As `fisher_diagonal`.
    """

    def measure(network: NamedOutputs, block: Block, names: list[str], outputs: list[str], first: int) -> Params:
        return fisher.output_sensitivity(
            network, lambda start, stop: block.inputs[start:stop], len(block.inputs), names, outputs
        )

    return _average(model, loader, measure, images, tasks, parameters)


def select_parameters(model: nn.Module, parameters: Collection[str] | None) -> Params:
    """Return the parameters of these names, or all that require a gradient.

    Raises:
        InputError: There is no such parameter, or none requires a gradient.
    """
    named = dict(model.named_parameters())
    names = [name for name, value in named.items() if value.requires_grad] if parameters is None else list(parameters)
    unknown = [name for name in names if name not in named]
    if unknown:
        raise InputError(f"the model has no parameter {unknown[0]!r}; give some of model.named_parameters()")
    if not names:
        raise InputError("no parameter of the model requires a gradient; give the names of those to hold")
    return {name: named[name] for name in names}


def _average(
    model: nn.Module,
    loader: Loader,
    measure: Measure,
    limit: int | None,
    tasks: Collection[str] | None,
    parameters: Collection[str] | None,
) -> Params:
    """Average what `measure` finds in each block of images."""
    if distributed.world_size() > 1:
        raise InputError(
            "each process of a group sees images of its own; measure in one process, and give importance= to all"
        )
    if limit is not None and limit < 1:
        raise InputError(f"images {limit} is too small; give 1 or more, or None for all")
    params = select_parameters(model, parameters)
    names, network = [PREFIX + name for name in params], NamedOutputs(model)
    sums: Params = {}
    count = 0
    for block in _read_blocks(loader, limit, next(iter(params.values())).device):
        if not count:
            tasks = _check_tasks(network, block.inputs, tasks)
        try:
            means = measure(network, block, names, list(tasks or ()), count)
        except ValueError as error:  # one line, which says what is wrong with model or labels
            raise InputError(str(error)) from error
        size = len(block.inputs)
        sums = {name: mean.mul_(size) + sums.get(name, 0) for name, mean in means.items()}
        count += size
    if not count:
        raise InputError("the loader has no batches; give one with images (an iterator is used up by reading it once)")
    return {name: sums[PREFIX + name] / count for name in params}


def _check_tasks(network: NamedOutputs, inputs: Tensor, tasks: Collection[str] | None) -> list[str]:
    with eval_mode(network), torch.no_grad():
        outputs = network(inputs[:1])
    missing = [task for task in tasks or () if task not in outputs]
    if missing:
        raise InputError(f"the model has no output {missing[0]!r}; it has {', '.join(outputs)}")
    return list(outputs if tasks is None else tasks)


def _read_blocks(loader: Loader, limit: int | None, device: torch.device) -> Iterator[Block]:
    """Yield the batches of a loader, small ones joined, up to `limit` images."""
    if isinstance(loader, Dataset):
        loader = _batch(loader)
    pending: list[Block] = []
    left = limit
    for batch in [loader] if isinstance(loader, tuple | Tensor) else loader:
        block = _split_batch(batch)
        if left is not None:
            block = Block(block.inputs[:left], _map_labels(lambda value, end=left: value[:end], block.labels))
            left -= len(block.inputs)
        pending.append(Block(block.inputs.to(device), block.labels))
        if sum(len(item.inputs) for item in pending) >= BLOCK:
            yield _join(pending)
            pending = []
        if left == 0:
            break
    if pending:
        yield _join(pending)


def _batch(dataset: Dataset[Any]) -> Iterator[Any]:
    try:
        yield from DataLoader(dataset, batch_size=BLOCK)
    except (TypeError, RuntimeError) as error:  # Pillow images, or tensors of several sizes
        raise InputError(
            f"the Dataset gives no batches: {first_line(error)}; add a transform to float tensors of one size"
        ) from error


def _split_batch(batch: Any) -> Block:
    inputs, labels = (
        (batch[0], batch[1] if len(batch) > 1 else None) if isinstance(batch, list | tuple) else (batch, None)
    )
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point() or not inputs.dim():
        kind = f"a tensor of {inputs.dtype}" if isinstance(inputs, Tensor) else f"a {type(inputs).__name__}"
        raise InputError(f"the loader gives batches of {kind}; give (inputs, labels) with float inputs [B, ...]")
    if not bool(torch.isfinite(inputs).all()):
        raise InputError("the loader gives inputs that are not finite; leave them out")
    return Block(inputs, labels)


def _join(blocks: list[Block]) -> Block:
    if len(blocks) == 1:
        return blocks[0]
    shapes = list(dict.fromkeys(tuple(block.inputs.shape[1:]) for block in blocks))
    if len(shapes) > 1:
        raise InputError(
            f"the loader gives inputs of several shapes ({', '.join(map(str, shapes))}); resize them to one"
        )
    first = blocks[0].labels
    inputs = torch.cat([block.inputs for block in blocks])
    if isinstance(first, Mapping):
        return Block(inputs, {task: torch.cat([block.labels[task] for block in blocks]) for task in first})
    return Block(inputs, torch.cat([block.labels for block in blocks]) if isinstance(first, Tensor) else None)


def _map_labels(change: Callable[[Tensor], Tensor], labels: Any) -> Any:
    if isinstance(labels, Mapping):
        return {task: change(value) for task, value in labels.items()}
    return change(labels) if isinstance(labels, Tensor) else None


def _read_targets(labels: Any, tasks: list[str]) -> dict[str, Tensor]:
    """Return the labels of a block by output.

    Raises:
        InputError: There are none for an output, or not one per image.
    """
    targets = labels if isinstance(labels, Mapping) else {tasks[0]: labels} if len(tasks) == 1 else {}
    for task in tasks:
        value = targets.get(task)
        if not isinstance(value, Tensor) or value.is_floating_point() or bool((value < 0).any()):
            what = "the output" if task == OUTPUT else f"output {task!r}"
            raise InputError(
                f"labels='empirical' needs a class index for each image and {what}, as (inputs, labels) or "
                "(inputs, {name: labels}); give them, or use labels='sampled'"
            )
    return {task: targets[task].long().cpu() for task in tasks}
