"""Removing tasks and classes from a classifier, or moving a task to its end: what is left keeps its bits."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from taskgraft.models.classifier import Classifier, HeadSpec
from taskgraft.models.side_networks import Ladder, Pooled, Tail
from taskgraft.models.trimmed_linear import trim
from taskgraft.types import Memory

NUMBERED = re.compile(r"(heads|extras)\.(\d+)\.(.*)")  # a parameter of a head or side network


class Restructured(NamedTuple):
    """What is left of a classifier, in its new order.

    Attributes:
        classifier: The classifier that is left.
        heads: The rows that are left of each head, by its old number; heads of which none is left are missing.
        extras: Old numbers of the side networks that are left.
        branch: Old number of the copy of the last stages that took their place; None = the backbone is the old one.
        counts: Classes that each task had.
        kept: The classes that stay of each task that lost any, as numbers; none of a task that was removed.
    """

    classifier: Classifier
    heads: dict[int, tuple[int, ...]]
    extras: tuple[int, ...]
    branch: int | None
    counts: dict[str, int]
    kept: dict[str, tuple[int, ...]]

    def rename(self, name: str, branch_names: frozenset[str]) -> str | None:
        """Return what a parameter is called now; None where it is gone. `branch_names` are those of the branch."""
        match = NUMBERED.fullmatch(name)
        if match is None:
            return None if name.removeprefix("backbone.") in branch_names else name
        kind, number, rest = match[1], int(match[2]), match[3]
        if kind == "extras" and number == self.branch:
            return f"backbone.{rest.removeprefix('net.')}"
        remaining = list(self.heads) if kind == "heads" else list(self.extras)
        return f"{kind}.{remaining.index(number)}.{rest}" if number in remaining else None


def restructure(classifier: Classifier, kept: Mapping[str, Sequence[int]], last: str = "") -> Restructured:
    """Remove classes from a copy of a classifier, and what only they needed.

    The logits of the other classes stay bit-identical. Side networks that no remaining head reads go too. Where all
    remaining heads read one copy of the last stages, it takes the place of these, and the classifier is plain.

    Args:
        classifier: The classifier; not changed.
        kept: For each task that loses classes, the numbers of those that stay, ascending; none removes the task.
        last: A task whose heads, and side networks that only these read, become the newest.
    """
    left = copy.deepcopy(classifier)
    counts = {task.name: len(task.classes) for task in classifier.tasks}
    heads = _remaining_rows(classifier, kept)
    heads = {number: heads[number] for number in sorted(heads, key=lambda i: classifier.head_specs[i].task == last)}
    specs = {number: classifier.head_specs[number] for number in heads}
    spans = _list_spans(classifier)
    readers = {
        number: {spec.task for spec in specs.values() if spec.start < stop and start < spec.stop}
        for number, (start, stop) in enumerate(spans)
    }
    used = sorted((number for number in readers if readers[number]), key=lambda number: readers[number] == {last})
    branch = next(
        (
            number
            for number in used
            if isinstance(classifier.extras[number], Tail)
            and all((spec.start, spec.stop) == spans[number] for spec in specs.values())
        ),
        None,
    )
    if branch is not None:
        tail = left.extras[branch]
        assert isinstance(tail, Tail)
        left.backbone.load_state_dict({**left.backbone.state_dict(), **tail.net.state_dict()})
        specs = {number: HeadSpec(spec.task, 0, classifier.width) for number, spec in specs.items()}
        used = []
    else:
        starts, start = {0: 0}, classifier.width  # of the backbone's features, then of each side network's: old -> new
        for number in used:
            starts[spans[number][0]] = start
            start += spans[number][1] - spans[number][0]
        for number, spec in specs.items():
            moved = starts[spec.start] - spec.start
            specs[number] = spec._replace(start=spec.start + moved, stop=spec.stop + moved)
    linears = left.linears()
    left.heads = nn.ModuleList(trim(linears[number], rows) for number, rows in heads.items())
    left.extras = nn.ModuleList(left.extras[number] for number in used)
    left.head_specs = tuple(specs.values())
    left.inherited_extras = sum(readers[number] != {last} for number in used)
    left._points_only = []
    left.tasks = tuple(
        task._replace(classes=tuple(task.classes[row] for row in kept.get(task.name, range(counts[task.name]))))
        for task in classifier.tasks
        if kept.get(task.name, (0,))
    )
    numbers = {task: tuple(rows) for task, rows in kept.items()}
    return Restructured(left, heads, tuple(used), branch, counts, numbers)


def prune_memory(memory: Memory, classifier: Classifier, restructured: Restructured) -> Memory:
    """Return what methods remember without what belongs to removed classes.

    Tensors follow the parameters that they are named after; stored images that are labeled for nothing else go. An
    importance of a shared weight stays, with what the removed classes contributed to it.

    Args:
        memory: Nested dictionaries of tensors.
        classifier: The classifier before the restructured.
        restructured: What was removed.
    """
    if "pixels" in memory and isinstance(memory.get("labels"), dict):
        return _prune_images(memory, restructured)
    branch = None if restructured.branch is None else classifier.extras[restructured.branch]
    names = frozenset(branch.net.state_dict()) if isinstance(branch, Tail) else frozenset[str]()
    shapes = {name: value.shape for name, value in classifier.named_parameters()}
    pruned: Memory = {}
    for name, value in memory.items():
        if not isinstance(value, Tensor):
            pruned |= {name: rest} if (rest := prune_memory(value, classifier, restructured)) else {}
            continue
        new = restructured.rename(name, names)
        if new is not None:
            match = NUMBERED.fullmatch(name)
            by_row = match is not None and match[1] == "heads" and value.shape == shapes.get(name)
            pruned[new] = value[list(restructured.heads[int(match[2])])] if match and by_row else value
    return pruned


def _remaining_rows(classifier: Classifier, kept: Mapping[str, Sequence[int]]) -> dict[int, tuple[int, ...]]:
    """Return the rows that stay of each head, by its number."""
    heads: dict[int, tuple[int, ...]] = {}
    first: dict[str, int] = {}
    for number, (spec, head) in enumerate(zip(classifier.head_specs, classifier.linears(), strict=True)):
        start = first.get(spec.task, 0)
        first[spec.task] = start + head.out_features
        own = range(start, first[spec.task])
        rows = tuple(row - start for row in kept.get(spec.task, own) if row in own)
        if rows:
            heads[number] = rows
    return heads


def _list_spans(classifier: Classifier) -> list[tuple[int, int]]:
    """Return the columns of the features that each side network computes."""
    spans, start = [], classifier.width
    for extra in classifier.extras:
        if isinstance(extra, Pooled):
            size = len(extra.center)
        else:
            size = 2 * sum(extra.widths) if isinstance(extra, Ladder) else classifier.width  # a copy of the last stages
        spans.append((start, start + size))
        start += size
    return spans


def _prune_images(memory: Memory, restructured: Restructured) -> Memory:
    """Return stored images without the labels of removed classes, and without images that have no other."""
    labels: dict[str, Tensor] = {}
    for task, target in memory["labels"].items():
        if task not in restructured.kept:
            labels[task] = target
        elif restructured.kept[task]:
            numbers = torch.full((restructured.counts[task] + 1,), -1)  # the last is that of -1: no label
            numbers[list(restructured.kept[task])] = torch.arange(len(restructured.kept[task]))
            labels[task] = numbers[target]
    if not labels:
        return {}
    rows = torch.stack([target >= 0 for target in labels.values()]).any(0)
    if not rows.any():
        return {}
    return {
        **memory,
        "pixels": memory["pixels"][rows],
        "labels": {task: target[rows] for task, target in labels.items()},
    }
