"""A backbone and one linear head per task; what the whole package calls the model.

Heads are separate layers, multiplied one by one: a product's bits may depend on how many columns it has, and old
answers must not change when a task is added. Bundles store them as one joint layer.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from taskgraft import seeds
from taskgraft.problem import Problem
from taskgraft.settings import Softmax
from taskgraft.types import Outputs, Params, Task


class Classifier(nn.Module):
    """Images [B, ...] -> {task: logits [B, K]}. The newest task is the last."""

    def __init__(
        self,
        backbone: nn.Module,
        heads: Sequence[nn.Linear],
        tasks: Sequence[Task],
        softmax: Softmax = "per-task",
    ) -> None:
        """`backbone` maps images to features [B, D]; `heads` hold one linear layer for each task."""
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleList(heads)
        self.tasks = tuple(tasks)
        self.softmax: Softmax = softmax

    def forward(self, images: Tensor) -> Outputs:
        """Answer all tasks from one pass through the backbone."""
        return self.answer(self.backbone(images))

    def linears(self) -> list[nn.Linear]:
        """The heads, oldest first."""
        return [head for head in self.heads if isinstance(head, nn.Linear)]

    def answer(self, features: Tensor) -> Outputs:
        """Logits of every task from features [B, D]."""
        return {task.name: head(features) for task, head in zip(self.tasks, self.heads, strict=True)}


def wrap(net: nn.Module, head: str, tasks: Sequence[Task], softmax: Softmax = "per-task") -> Classifier:
    """Take a network whose last layer is the linear layer named `head` (such as "fc" or "head.fc").

    The layer's rows are divided among `tasks` in order. The network is copied, not changed. Raises Problem when
    there is no such linear layer or the number of rows is not the number of classes.
    """
    names = dict(net.named_modules())
    layer = names.get(head)
    if not isinstance(layer, nn.Linear):
        linear = [name for name, module in names.items() if isinstance(module, nn.Linear)]
        raise Problem(
            f"{head!r} is no linear layer of {type(net).__name__}; its linear layers: {', '.join(linear[-5:])}"
        )
    rows = sum(len(task.classes) for task in tasks)
    if layer.out_features != rows:
        raise Problem(
            f"the layer {head!r} has {layer.out_features} rows, but there are {rows} class names; they must match"
        )
    net = copy.deepcopy(net)
    net.set_submodule(head, nn.Identity())
    heads, start = [], 0
    for task in tasks:
        part = nn.Linear(layer.in_features, len(task.classes), dtype=layer.weight.dtype)
        stop = start + len(task.classes)
        with torch.no_grad():
            part.weight.copy_(layer.weight[start:stop])
            part.bias.copy_(layer.bias[start:stop] if layer.bias is not None else torch.zeros(stop - start))
        heads.append(part)
        start = stop
    return Classifier(net, heads, tasks, softmax)


def grow(classifier: Classifier, task: Task, seed: int) -> Classifier:
    """A copy with a head for `task` added; old rows and old logits stay bit-identical.

    The new rows are drawn from U(-1/sqrt(D), 1/sqrt(D)) as nn.Linear's are, but from `seed`. Raises Problem when
    the task's name exists or it has fewer than two classes.
    """
    known = [old.name for old in classifier.tasks]
    if task.name in known:
        raise Problem(
            f"the model already has a task {task.name!r} (tasks: {', '.join(known)}); choose another --task name"
        )
    if len(task.classes) < 2:
        raise Problem(f"task {task.name!r} has {len(task.classes)} class; a classifier needs at least two")
    grown = copy.deepcopy(classifier)
    like = classifier.linears()[0].weight
    features = like.shape[1]
    head = nn.Linear(features, len(task.classes), device=like.device, dtype=like.dtype)
    rng = seeds.generator(seed, "head", task.name)
    bound = features**-0.5
    with torch.no_grad():
        for part in (head.weight, head.bias):
            part.copy_(torch.from_numpy(rng.uniform(-bound, bound, tuple(part.shape))))
    grown.heads.append(head)
    grown.tasks = (*classifier.tasks, task)
    return grown


def inherited(classifier: Classifier) -> Params:
    """The parameters that the parent has too: backbone and old heads, never the newest head."""
    newest = f"heads.{len(classifier.heads) - 1}."
    return {name: value for name, value in classifier.named_parameters() if not name.startswith(newest)}


def freeze_norms(classifier: Classifier) -> None:
    """Put every BatchNorm layer in eval mode: it keeps the parent's running statistics."""
    for module in classifier.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):  # pyright: ignore[reportPrivateUsage]
            module.eval()


def joint_layer(classifier: Classifier) -> tuple[Tensor, Tensor]:
    """All heads as one layer, old rows then new rows: weight [sum K, D] and bias [sum K]."""
    return (
        torch.cat([head.weight.detach() for head in classifier.linears()]),
        torch.cat([head.bias.detach() for head in classifier.linears()]),
    )
