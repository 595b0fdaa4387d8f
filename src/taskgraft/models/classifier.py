"""The classifier: a backbone and one linear head per task.

Heads are separate layers and multiplied one by one: the bits of a matrix product may depend on how many columns it has,
and old logits must not change when a task is added. Bundles of plain classifiers store them as one joint layer.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn

from taskgraft import seeding
from taskgraft.config import Softmax
from taskgraft.errors import InputError
from taskgraft.models.feature_points import LAST, points_only
from taskgraft.models.side_networks import Tail
from taskgraft.types import Outputs, Params, Task


class HeadSpec(NamedTuple):
    """A head's task, and the features [:, start:stop] that it reads."""

    task: str
    start: int
    stop: int


class Classifier(nn.Module):
    """Images [B, ...] -> {task: logits [B, K]}. The newest head is the last.

    A plain classifier has one head per task, on the features [B, D] of the backbone. With `extras` (side networks) the
    backbone also outputs its stages (`feature_points.expose_points`), each extra computes further features from them,
    and each head reads its own columns. A task to which classes were added has several heads, whose logits are
    concatenated.
    """

    def __init__(
        self,
        backbone: nn.Module,
        heads: Sequence[nn.Linear],
        tasks: Sequence[Task],
        softmax: Softmax = "per-task",
        *,
        extras: Sequence[nn.Module] = (),
        head_specs: Sequence[HeadSpec] | None = None,
        width: int | None = None,
    ) -> None:
        """`head_specs` describes each head; without it there is one head per task, which reads all features.

        `width` is the number of the backbone's own features; without it the first head reads them all.
        """
        super().__init__()
        self.backbone = backbone
        self.extras = nn.ModuleList(extras)
        self.heads = nn.ModuleList(heads)
        self.tasks = tuple(tasks)
        self.softmax: Softmax = softmax
        if head_specs is None:
            head_specs = [HeadSpec(task.name, 0, head.in_features) for task, head in zip(tasks, heads, strict=True)]
        self.head_specs = tuple(head_specs)
        self.width = width or heads[0].in_features
        self.inherited_extras = len(self.extras)  # how many are older than the newest head
        self._points_only: list[fx.GraphModule] = []  # in a list: its submodules belong to the backbone

    def forward(self, images: Tensor) -> Outputs:
        """Compute the logits of all tasks in one pass: {task: [B, K]}."""
        return self.logits(self.features(images))

    def features(self, images: Tensor) -> Tensor:
        """Compute the features [B, D] that the heads read: those of the backbone, then those of each extra."""
        output = self.backbone(images)
        if isinstance(output, Tensor):
            return output
        last, points = output
        return torch.cat([last, *(extra({**points, LAST: last}, images) for extra in self.extras)], 1)

    def newest_logits(self, images: Tensor) -> Tensor:
        """Compute the logits [B, K] of the newest head alone, without stages that only older heads read."""
        new_extras = self.extras[self.inherited_extras :]
        tails = [extra for extra in new_extras if isinstance(extra, Tail)]
        if not tails or len(tails) < len(new_extras) or not isinstance(self.backbone, fx.GraphModule):
            spec = self.head_specs[-1]
            return self.heads[-1](_columns(self.features(images), spec.start, spec.stop))
        if not self._points_only:
            self._points_only = [points_only(self.backbone, [tail.point for tail in tails])]
        points = self._points_only[0](images)
        return self.heads[-1](torch.cat([tail(points, images) for tail in tails], 1))

    def logits(self, features: Tensor) -> Outputs:
        """Compute the logits of every task from features [B, D]: {task: [B, K]}."""
        outputs: dict[str, list[Tensor]] = {}
        for spec, head in zip(self.head_specs, self.heads, strict=True):
            reads_all = spec.stop - spec.start == features.shape[1]
            columns = features if reads_all else _columns(features, spec.start, spec.stop)
            outputs.setdefault(spec.task, []).append(head(columns))
        return {task: logits[0] if len(logits) == 1 else torch.cat(logits, 1) for task, logits in outputs.items()}

    def linears(self) -> list[nn.Linear]:
        """Return the heads, oldest first."""
        return [head for head in self.heads if isinstance(head, nn.Linear)]


def wrap(
    net: nn.Module,
    head: str,
    tasks: Sequence[Task],
    softmax: Softmax = "per-task",
    head_sizes: Sequence[tuple[str, int]] = (),
) -> Classifier:
    """Make a classifier of a network whose last layer is a linear layer.

    Args:
        net: The network; it is copied, not changed.
        head: Name of the linear layer, such as "fc" or "head.fc". Its rows are divided among `tasks` in order.
        tasks: The tasks with their class names.
        softmax: "per-task", or "joint" for one softmax over the outputs of all tasks.
        head_sizes: (task, classes) of each head, oldest first, where classes were added to tasks.

    Raises:
        InputError: There is no such linear layer, or its number of rows is not the number of classes.
    """
    modules = dict(net.named_modules())
    layer = modules.get(head)
    if not isinstance(layer, nn.Linear):
        linear = [name for name, module in modules.items() if isinstance(module, nn.Linear)]
        raise InputError(
            f"{head!r} is not a linear layer of {type(net).__name__}; choose one of {', '.join(linear[-5:])}"
        )
    rows = sum(len(task.classes) for task in tasks)
    if layer.out_features != rows:
        raise InputError(
            f"the layer {head!r} has {layer.out_features} outputs, but {rows} class names were given; give one each"
        )
    net = copy.deepcopy(net)
    net.set_submodule(head, nn.Identity())
    bias = layer.bias if layer.bias is not None else torch.zeros(rows, dtype=layer.weight.dtype)
    sizes = list(head_sizes) or [(task.name, len(task.classes)) for task in tasks]
    next_row, row = {}, 0
    for task in tasks:
        next_row[task.name], row = row, row + len(task.classes)
    heads = []
    for name, size in sizes:
        start = next_row[name]
        next_row[name] += size
        heads.append(_linear(layer.weight[start : start + size], bias[start : start + size]))
    specs = [HeadSpec(name, 0, layer.in_features) for name, _ in sizes]
    return Classifier(net, heads, tasks, softmax, head_specs=specs)


def grow(classifier: Classifier, task: Task, seed: int = 0) -> Classifier:
    """Return a copy with a head for a new task; old weights and old logits stay bit-identical.

    Args:
        classifier: The classifier to extend; not changed.
        task: The new task.
        seed: Random seed of the new weights, drawn from U(-1/sqrt(D), 1/sqrt(D)) like those of nn.Linear.

    Raises:
        InputError: The task's name exists, or it has fewer than two classes.
    """
    names = [old.name for old in classifier.tasks]
    if task.name in names:
        raise InputError(
            f"the model already has a task {task.name!r} (tasks: {', '.join(names)}); choose another --task name "
            f"(or --parent-task for a file of weights), or add classes to it by extend --into {task.name}"
        )
    if len(task.classes) < 2:
        raise InputError(f"task {task.name!r} has {len(task.classes)} class, but at least two are needed; add one")
    spec = HeadSpec(task.name, 0, classifier.width)
    return _add_head(classifier, task.classes, spec, (*classifier.tasks, task), seed)


def widen(classifier: Classifier, task: str, classes: Sequence[str], seed: int) -> Classifier:
    """Return a copy in which an old task has additional classes with a head of their own; old weights stay.

    Args:
        classifier: The classifier to extend; not changed.
        task: Name of the old task.
        classes: Class names; those that the task has already are ignored.
        seed: Random seed of the new weights.

    Raises:
        InputError: There is no such task, no class is new, or the softmax is joint.
    """
    tasks = {old.name: old for old in classifier.tasks}
    if task not in tasks:
        raise InputError(f"--into {task!r}: the model has no such task; it has {', '.join(tasks)}")
    added = tuple(name for name in classes if name not in tasks[task].classes)
    if not added:
        raise InputError(
            f"--into {task!r}: the model already has all {len(classes)} classes; give images of new ones, or teach it "
            "these images by taskgraft refresh"
        )
    if classifier.softmax == "joint":
        raise InputError("--into needs one softmax per task; leave --softmax joint out")
    tasks[task] = tasks[task]._replace(classes=(*tasks[task].classes, *added))
    spec = next(spec for spec in classifier.head_specs if spec.task == task)
    return _add_head(classifier, added, spec, tuple(tasks.values()), seed)


def inherited_parameters(classifier: Classifier) -> Params:
    """Return the parameters that the parent has too: all but the newest head and extras that only it reads."""
    new_extras = range(classifier.inherited_extras, len(classifier.extras))
    new = (f"heads.{len(classifier.heads) - 1}.", *(f"extras.{i}." for i in new_extras))
    return {name: value for name, value in classifier.named_parameters() if not name.startswith(new)}


def newest_task(classifier: Classifier) -> str:
    """Return the name of the task of the newest head."""
    return classifier.head_specs[-1].task


def old_class_counts(classifier: Classifier) -> dict[str, int]:
    """Return for each task how many of its classes are older than the newest head."""
    counts: dict[str, int] = {}
    for spec, head in zip(classifier.head_specs[:-1], classifier.linears()[:-1], strict=True):
        counts[spec.task] = counts.get(spec.task, 0) + head.out_features
    return counts


def set_frozen_to_eval(classifier: Classifier, norm: str) -> None:
    """Put all BatchNorm layers (norm "frozen") and modules without trainable parameters in eval mode.

    In train mode the statistics of a BatchNorm layer are updated even where its weights are frozen.
    """
    for module in classifier.modules():
        trainable = [value.requires_grad for value in module.parameters()]
        is_frozen_norm = norm == "frozen" and isinstance(module, nn.modules.batchnorm._BatchNorm)
        if is_frozen_norm or (trainable and not any(trainable)):
            module.eval()


def freeze(classifier: Classifier) -> Classifier:
    """Freeze everything but the newest head and the extras that only it reads."""
    for value in inherited_parameters(classifier).values():
        value.requires_grad_(False)
    return classifier


def connect_newest_head(classifier: Classifier, start: int, stop: int) -> None:
    """Let the newest head read the features [:, start:stop], with weights of zero."""
    old, task = classifier.linears()[-1], newest_task(classifier)
    classifier.heads[-1] = _linear(old.weight.new_zeros(old.out_features, stop - start), torch.zeros_like(old.bias))
    classifier.head_specs = (*classifier.head_specs[:-1], HeadSpec(task, start, stop))


def merge_heads(classifier: Classifier) -> tuple[Tensor, Tensor]:
    """Return all heads as one layer, task by task and oldest classes first: weight [sum K, D] and bias [sum K]."""
    heads = list(zip(classifier.head_specs, classifier.linears(), strict=True))
    ordered = [head for task in classifier.tasks for spec, head in heads if spec.task == task.name]
    return torch.cat([head.weight.detach() for head in ordered]), torch.cat([head.bias.detach() for head in ordered])


def _add_head(
    classifier: Classifier, classes: Sequence[str], spec: HeadSpec, tasks: tuple[Task, ...], seed: int
) -> Classifier:
    grown = copy.deepcopy(classifier).requires_grad_(True)  # a method may have frozen the parent
    rows, width, like = len(classes), spec.stop - spec.start, classifier.linears()[0].weight
    rng, bound = seeding.generator(seed, "head", spec.task), width**-0.5
    weight, bias = (torch.from_numpy(rng.uniform(-bound, bound, shape)).to(like) for shape in ((rows, width), (rows,)))
    grown.heads.append(_linear(weight, bias))
    grown.head_specs = (*classifier.head_specs, spec)
    grown.tasks = tasks
    grown.inherited_extras = len(classifier.extras)
    grown._points_only = []
    return grown


def _columns(features: Tensor, start: int, stop: int) -> Tensor:
    """Copy some columns: the bits of a product may depend on where in memory its input begins.

    A single row would be contiguous without a copy, and begin wherever the columns before it end.
    """
    return features[:, start:stop].clone(memory_format=torch.contiguous_format)


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    rows, width = weight.shape
    head = nn.utils.skip_init(nn.Linear, width, rows, device=weight.device, dtype=weight.dtype)  # no random numbers
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
    return head
