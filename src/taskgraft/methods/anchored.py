"""What penalties on weights share: an anchor, an importance of each weight, and both through a chain of extensions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from taskgraft.models.classifier import Classifier, inherited_parameters, newest_task, old_class_counts
from taskgraft.models.inference import compute_once
from taskgraft.types import Images, Memory, Params, TrainingData

Measure = Callable[[Images, list[str], list[str]], Params]  # (images, parameters, tasks) -> importance of each


def anchor_weights(classifier: Classifier, sources: TrainingData, past: Memory, measure: Measure, name: str) -> Memory:
    """Return the anchor and the importance of the weights to hold.

    With one softmax per task every inherited weight is anchored. Importances recorded in the parent's bundle are used;
    tasks that they do not cover are measured on the old sample, or else on the new images, and added: the heads are
    independent, so importances add.

    Under a joint softmax old predictions depend on the new head as well, so that it is anchored at its initial values,
    and the importance is that of the one distribution over all outputs. An old sample then replaces what the bundle
    recorded, which was measured before the new outputs existed. Without one, the bundle's importances are used for the
    parameters that they cover, and the new images for the rest.

    Args:
        classifier: The classifier before training, its new head included.
        sources: The images to measure on.
        past: What the parent's bundle carries of the method: {"importance": name -> tensor}, or {}.
        measure: Measures importances on images.
        name: Says what is measured and how; trials of a search share measurements of the same name.

    Returns:
        {"anchor": ..., "importance": ...}, each parameter name -> tensor of its shape; {} for a first task.
    """
    if not old_class_counts(classifier):
        return {}  # a first task: there is nothing to anchor yet
    state = dict(classifier.named_parameters())
    recorded: Params = past.get("importance", {})
    images = sources.old or sources.new
    if classifier.softmax == "joint":
        names = list(state)
        recorded = {} if sources.old else recorded
        measured = compute_once(sources, name, lambda: measure(images, names, [task.name for task in classifier.tasks]))
        measured = {name: value for name, value in measured.items() if name not in recorded}
    else:
        names = list(inherited_parameters(classifier))
        missing = {
            spec.task for i, spec in enumerate(classifier.head_specs[:-1]) if f"heads.{i}.weight" not in recorded
        }
        measured = compute_once(sources, name, lambda: measure(images, names, sorted(missing))) if missing else {}
    return {
        "anchor": {name: state[name].detach().clone() for name in names},
        "importance": {name: _sum(state[name], measured.get(name), recorded.get(name)) for name in names},
    }


def accumulate_importance(classifier: Classifier, memory: Memory, sources: TrainingData, measure: Measure) -> Memory:
    """Return the memory for the next extension: the new task's importance added to that of the old tasks."""
    names = [name for name, _ in classifier.named_parameters()]
    joint = classifier.softmax == "joint"
    added = measure(
        sources.new, names, [task.name for task in classifier.tasks] if joint else [newest_task(classifier)]
    )
    for name, old in memory.get("importance", {}).items():
        added[name] = added[name] + old
    return {"importance": added}


def anchor_and_importance(memory: Memory) -> tuple[Params, Params]:
    """Return the anchor and the importance in a memory; both are empty where nothing is anchored."""
    return memory.get("anchor", {}), memory.get("importance", {})


def _sum(like: Tensor, *terms: Tensor | None) -> Tensor:
    total = torch.zeros_like(like, memory_format=torch.preserve_format, requires_grad=False)
    for term in terms:
        if term is not None:
            total += term.to(total.device)
    return total
