"""What the methods that hold weights share: an anchor, an importance for each weight, and both through a chain."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from taskgraft.models.classifier import Classifier, inherited_parameters, newest_task, old_class_counts
from taskgraft.models.features import compute_once
from taskgraft.types import Images, Memory, Params, TrainingData

Measure = Callable[[Images, list[str], list[str]], Params]  # (images, parameters, tasks) -> importance of each


def anchor_weights(classifier: Classifier, sources: TrainingData, past: Memory, measure: Measure, name: str) -> Memory:
    """Anchor and importance of what is held; `name` says what is measured, and how.

    With a softmax for each task everything inherited is held. What the parent's bundle kept counts; tasks that it does
    not cover are measured on the old sample, or else on the new images, and added: the heads are independent, so
    importances add.

    Under a joint softmax old answers depend on the new rows as well, so these are held too, where they start, and the
    importance is that of the one distribution over all outputs. An old sample then counts alone: what the bundle kept
    was measured before the new outputs were there. Without one, the bundle's counts for what it covers, and the new
    images for the rest.
    """
    if not old_class_counts(classifier):
        return {}  # a first task: there is nothing to hold yet
    state = dict(classifier.named_parameters())
    known: Params = past.get("importance", {})
    images = sources.old or sources.new
    if classifier.softmax == "joint":
        names = list(state)
        known = {} if sources.old else known
        found = compute_once(sources, name, lambda: measure(images, names, [task.name for task in classifier.tasks]))
        found = {name: value for name, value in found.items() if name not in known}
    else:
        names = list(inherited_parameters(classifier))
        missing = {p.task for i, p in enumerate(classifier.parts[:-1]) if f"heads.{i}.weight" not in known}
        found = compute_once(sources, name, lambda: measure(images, names, sorted(missing))) if missing else {}
    return {
        "anchor": {name: state[name].detach().clone() for name in names},
        "importance": {name: _sum(state[name], found.get(name), known.get(name)) for name in names},
    }


def accumulate_importance(classifier: Classifier, memory: Memory, sources: TrainingData, measure: Measure) -> Memory:
    """For the next extension: the new task's importance, added to the old tasks'."""
    names = [name for name, _ in classifier.named_parameters()]
    joint = classifier.softmax == "joint"
    added = measure(
        sources.new, names, [task.name for task in classifier.tasks] if joint else [newest_task(classifier)]
    )
    for name, old in memory.get("importance", {}).items():
        added[name] = added[name] + old
    return {"importance": added}


def anchor_and_importance(memory: Memory) -> tuple[Params, Params]:
    """The anchor and the importance in a memory; both are empty where nothing is held."""
    return memory.get("anchor", {}), memory.get("importance", {})


def _sum(like: Tensor, *parts: Tensor | None) -> Tensor:
    total = torch.zeros_like(like, memory_format=torch.preserve_format, requires_grad=False)
    for part in parts:
        if part is not None:
            total += part.to(total.device)
    return total
