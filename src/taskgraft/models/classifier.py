"""A backbone and linear heads; what the whole package calls the model.

Heads are separate layers, multiplied one by one: a product's bits may depend on how many columns it has, and old
answers must not change when a task is added. Bundles of plain classifiers store them as one joint layer.
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


class Part(NamedTuple):
    """One head: rows of which task, reading which columns of the features."""

    task: str
    start: int
    stop: int


class Classifier(nn.Module):
    """Images [B, ...] -> {task: logits [B, K]}. The newest head is the last.

    A plain classifier has one head for each task, on features [B, D] of the backbone. With `extras` the backbone also
    shows its stages (`stages.staged`), each extra makes further columns of them, and each head reads its own columns.
    A task whose classes were added to has several heads; its logits are theirs side by side.
    """

    def __init__(
        self,
        backbone: nn.Module,
        heads: Sequence[nn.Linear],
        tasks: Sequence[Task],
        softmax: Softmax = "per-task",
        *,
        extras: Sequence[nn.Module] = (),
        parts: Sequence[Part] | None = None,
    ) -> None:
        """`parts` tells of each head what it is; without it there is one head for each task."""
        super().__init__()
        self.backbone = backbone
        self.extras = nn.ModuleList(extras)
        self.heads = nn.ModuleList(heads)
        self.tasks = tuple(tasks)
        self.softmax: Softmax = softmax
        plain = [Part(task.name, 0, head.in_features) for task, head in zip(tasks, heads, strict=parts is None)]
        self.parts = tuple(plain if parts is None else parts)
        self.settled = len(self.extras)  # so many extras are older than the newest head
        self._lean: list[fx.GraphModule] | None = None

    def forward(self, images: Tensor) -> Outputs:
        """Answer all tasks from one pass."""
        return self.answer(self.features(images))

    def features(self, images: Tensor) -> Tensor:
        """Columns [B, D] that the heads read: the backbone's, then those of each extra."""
        given = self.backbone(images)
        if isinstance(given, Tensor):
            return given
        last, seen = given
        return torch.cat([last, *(extra({**seen, LAST: last}, images) for extra in self.extras)], 1)

    def newest_logits(self, images: Tensor) -> Tensor:
        """Logits [B, K] of the newest head alone, the same bits; stages that only older heads read are left out."""
        own = [extra for extra in self.extras[self.settled :] if isinstance(extra, Tail)]
        if not own or len(own) < len(self.extras) - self.settled or not isinstance(self.backbone, fx.GraphModule):
            part = self.parts[-1]
            return self.heads[-1](self.features(images)[:, part.start : part.stop].contiguous())
        if self._lean is None:  # in a list: its submodules are the backbone's, and are not to be counted twice
            self._lean = [points_only(self.backbone, [extra.point for extra in own])]
        seen = self._lean[0](images)
        return self.heads[-1](torch.cat([extra(seen, images) for extra in own], 1))

    def answer(self, features: Tensor) -> Outputs:
        """Logits of every task from features [B, D]."""
        rows: dict[str, list[Tensor]] = {}
        for part, head in zip(self.parts, self.heads, strict=True):
            whole = part.stop - part.start == features.shape[1]
            own = features if whole else features[:, part.start : part.stop].contiguous()
            rows.setdefault(part.task, []).append(head(own))
        return {task: found[0] if len(found) == 1 else torch.cat(found, 1) for task, found in rows.items()}

    def linears(self) -> list[nn.Linear]:
        """The heads, oldest first."""
        return [head for head in self.heads if isinstance(head, nn.Linear)]


def wrap(
    net: nn.Module,
    head: str,
    tasks: Sequence[Task],
    softmax: Softmax = "per-task",
    parts: Sequence[tuple[str, int]] = (),
) -> Classifier:
    """Take a network whose last layer is the linear layer named `head` (such as "fc" or "head.fc").

    The layer's rows are divided among `tasks` in order; `parts` (task, rows) tells, oldest first, of the heads that
    tasks with added classes have. The network is copied, not changed. Raises TaskgraftError when there is no such linear
    layer or the number of rows is not the number of classes.
    """
    names = dict(net.named_modules())
    layer = names.get(head)
    if not isinstance(layer, nn.Linear):
        linear = [name for name, module in names.items() if isinstance(module, nn.Linear)]
        raise InputError(f"{head!r} is no linear layer of {type(net).__name__}; choose one of {', '.join(linear[-5:])}")
    rows = sum(len(task.classes) for task in tasks)
    if layer.out_features != rows:
        raise InputError(
            f"the layer {head!r} has {layer.out_features} rows, but there are {rows} class names; give one name a row"
        )
    net = copy.deepcopy(net)
    net.set_submodule(head, nn.Identity())
    bias = layer.bias if layer.bias is not None else torch.zeros(rows, dtype=layer.weight.dtype)
    sizes = list(parts) or [(task.name, len(task.classes)) for task in tasks]
    width, starts, row = layer.in_features, {}, 0
    for task in tasks:
        starts[task.name], row = row, row + len(task.classes)
    heads = []
    for name, size in sizes:
        rows_of = slice(starts[name], starts[name] + size)
        heads.append(_linear(layer.weight[rows_of], bias[rows_of]))
        starts[name] += size
    return Classifier(net, heads, tasks, softmax, parts=[Part(name, 0, width) for name, _ in sizes])


def grow(classifier: Classifier, task: Task, seed: int) -> Classifier:
    """A copy with a head for `task` added; old rows and old logits stay bit-identical.

    The new rows are drawn from U(-1/sqrt(D), 1/sqrt(D)) as nn.Linear's are, but from `seed`. Raises TaskgraftError when
    the task's name exists or it has fewer than two classes.
    """
    known = [old.name for old in classifier.tasks]
    if task.name in known:
        raise InputError(
            f"the model already has a task {task.name!r} (tasks: {', '.join(known)}); choose another --task name, "
            f"or add classes to it by extend --into {task.name}"
        )
    if len(task.classes) < 2:
        raise InputError(f"task {task.name!r} has {len(task.classes)} class, and a classifier needs two; add one")
    plain = Part(task.name, 0, classifier.linears()[0].in_features)  # the oldest head reads the backbone's own features
    return _grown(classifier, task.classes, plain, (*classifier.tasks, task), seed)


def widen(classifier: Classifier, task: str, classes: Sequence[str], seed: int) -> Classifier:
    """A copy in which an old task has further classes, behind a head of their own; old rows stay bit-identical.

    Raises TaskgraftError when there is no such task or no class is new.
    """
    known = {old.name: old for old in classifier.tasks}
    if task not in known:
        raise InputError(f"--into {task!r}: the model has no such task; it has {', '.join(known)}")
    added = tuple(name for name in classes if name not in known[task].classes)
    if not added:
        raise InputError(f"--into {task!r}: the model knows all {len(classes)} classes already; give images of others")
    if classifier.softmax == "joint":
        raise InputError("--into works with one softmax a task; leave --softmax joint out")
    wider = known[task]._replace(classes=(*known[task].classes, *added))
    tasks = tuple(wider if old.name == task else old for old in classifier.tasks)
    same = next(part for part in classifier.parts if part.task == task)
    return _grown(classifier, added, same, tasks, seed)


def inherited_parameters(classifier: Classifier) -> Params:
    """The parameters that the parent has too: all but the newest head and what only that head reads."""
    newest = (f"heads.{len(classifier.heads) - 1}.", *_own_extras(classifier))
    return {name: value for name, value in classifier.named_parameters() if not name.startswith(newest)}


def newest_task(classifier: Classifier) -> str:
    """The name of the task that the newest head belongs to."""
    return classifier.parts[-1].task


def old_class_counts(classifier: Classifier) -> dict[str, int]:
    """How many classes of each task are older than the newest head."""
    widths: dict[str, int] = {}
    for part, head in zip(classifier.parts[:-1], classifier.linears()[:-1], strict=True):
        widths[part.task] = widths.get(part.task, 0) + head.out_features
    return widths


def set_frozen_to_eval(classifier: Classifier, norm: str) -> None:
    """Put in eval mode what must not move: all BatchNorm layers (norm "frozen"), and parts in which nothing learns.

    A BatchNorm layer's statistics follow the images in train mode even where its weights are frozen.
    """
    for module in classifier.modules():
        learns = [value.requires_grad for value in module.parameters()]
        fixed = norm == "frozen" and isinstance(module, nn.modules.batchnorm._BatchNorm)
        if fixed or (learns and not any(learns)):
            module.eval()


def freeze(classifier: Classifier) -> Classifier:
    """Let nothing learn but the newest head and what only that head reads."""
    for value in inherited_parameters(classifier).values():
        value.requires_grad_(False)
    return classifier


def connect_newest_head(classifier: Classifier, start: int, stop: int) -> None:
    """Let the newest head read the columns start..stop; it begins at zero, since nothing is known of them."""
    old, name = classifier.linears()[-1], newest_task(classifier)
    classifier.heads[-1] = _linear(old.weight.new_zeros(old.out_features, stop - start), torch.zeros_like(old.bias))
    classifier.parts = (*classifier.parts[:-1], Part(name, start, stop))


def merge_heads(classifier: Classifier) -> tuple[Tensor, Tensor]:
    """All heads as one layer, task by task and oldest rows first: weight [sum K, D] and bias [sum K]."""
    order = [i for task in classifier.tasks for i, part in enumerate(classifier.parts) if part.task == task.name]
    heads = classifier.linears()
    return (
        torch.cat([heads[i].weight.detach() for i in order]),
        torch.cat([heads[i].bias.detach() for i in order]),
    )


def _grown(
    classifier: Classifier, classes: Sequence[str], part: Part, tasks: tuple[Task, ...], seed: int
) -> Classifier:
    grown = copy.deepcopy(classifier).requires_grad_(True)  # a method may have frozen what it handed on
    like = classifier.linears()[0].weight
    grown.heads.append(_drawn(part.task, len(classes), part.stop - part.start, like, seed))
    grown.parts = (*classifier.parts, part)
    grown.tasks = tasks
    grown.settled = len(classifier.extras)
    grown._lean = None
    return grown


def _own_extras(classifier: Classifier) -> tuple[str, ...]:
    """Prefixes of the extras that came with the newest head."""
    return tuple(f"extras.{i}." for i in range(classifier.settled, len(classifier.extras)))


def _drawn(name: str, rows: int, width: int, like: Tensor, seed: int) -> nn.Linear:
    rng, bound = seeding.generator(seed, "head", name), width**-0.5
    weight, bias = (torch.from_numpy(rng.uniform(-bound, bound, shape)).to(like) for shape in ((rows, width), (rows,)))
    return _linear(weight, bias)


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    rows, width = weight.shape
    head = nn.utils.skip_init(nn.Linear, width, rows, device=weight.device, dtype=weight.dtype)  # draws nothing
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
    return head
