"""Opening a refresh: a task of a finished model learns new images of the classes that it has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from taskgraft import distributed
from taskgraft.data.class_names import find_matches
from taskgraft.data.labeled_images import ImageSource
from taskgraft.data.task_images import TaskData, match_task, read_class_names
from taskgraft.errors import InputError
from taskgraft.methods.protocol import Plan
from taskgraft.models.classifier import Classifier, freeze
from taskgraft.models.restructuring import prune_memory, restructure
from taskgraft.pipeline.compression import answer
from taskgraft.pipeline.opening import Opened, load_images, open_model, with_unlabeled
from taskgraft.pipeline.request import RefreshRequest, validate_request
from taskgraft.types import Callbacks, Memory, Task

MAX_NAMED = 5  # classes named in a line


def open_refresh(request: RefreshRequest, cache: Path | None, callbacks: Callbacks) -> Opened:
    """Open the model and the images, and build the child: a copy whose newest task is the one that is refreshed.

    The model as it was is the teacher of all its tasks. Where the task has a side network of its own, nothing else is
    trained, and the other tasks keep their bits.

    Args:
        request: A refresh.
        cache: Folder of decoded pixels; None = in memory only.
        callbacks: `info` is called with what was inferred.

    Raises:
        TaskgraftError: A value, the model or the images cannot be used.
    """
    parent = open_model(request, "parent", cache, callbacks)
    tasks = tuple(parent.tasks)
    task = _find_task(request, tasks)
    request, plan = validate_request(replace(request, task=task.name))
    _require_same_network(request, plan)
    if request.config.softmax != parent.classifier.softmax:
        raise InputError(f"the model was trained with --softmax {parent.classifier.softmax}; refresh it with the same")
    _check_classes(request.data, task)
    parent.classifier.to(distributed.device())
    restructured = restructure(parent.classifier, {}, last=task.name)
    memory = prune_memory(parent.memory, parent.classifier, restructured)
    child, memory = _join_heads(restructured.classifier, task.name, memory)
    parent.classifier.requires_grad_(False)
    child.requires_grad_(True)
    images, parent = load_images(request, replace(parent, memory=memory), tasks, task.classes, cache, callbacks)
    notes = [*_describe_missing(images, task)]
    if child.inherited_extras < len(child.extras):
        freeze(child)
        notes.append(f"{task.name} has layers of its own: only these are trained, and all other tasks keep their bits")
    for note in notes:
        callbacks.info(note)
    opened = Opened(request, plan, parent, tasks, child, images, teacher=answer(parent.classifier), notes=tuple(notes))
    return with_unlabeled(opened, request, cache, callbacks)


def _find_task(request: RefreshRequest, tasks: Sequence[Task]) -> Task:
    """Return the task that is refreshed: the one that is named, or else the one whose classes the images have."""
    if not request.task:
        return match_task(request.data, tasks)
    found = next((task for task in tasks if task.name == request.task), None)
    if found is None:
        names = ", ".join(task.name for task in tasks)
        raise InputError(f"--task {request.task!r}: the model has no such task; it has {names}")
    return found


def _require_same_network(request: RefreshRequest, plan: Plan) -> None:
    attaching = [name for name, settings in plan.items() if settings.traits.attaches]
    if attaching:
        raise InputError(
            f"--method: {attaching[0]} adds a side network for a new task, but a refresh trains the one that is there; "
            "leave it out"
        )


def _check_classes(data: ImageSource, task: Task) -> None:
    """Check that all classes of the images are the task's.

    Raises:
        InputError: One is not.
    """
    added = [name for name in read_class_names(data, task.name) if name not in task.classes]
    if added:
        match = find_matches(added[:1], task.classes)
        hint = f"did you mean {match[0].suggestion!r}? Else add" if match else "add"
        raise InputError(
            f"{data} has the class {added[0]!r}, which the task {task.name!r} lacks; {hint} it by taskgraft extend "
            f"with --into {task.name!r}, or leave its images out"
        )


def _describe_missing(images: TaskData, task: Task) -> list[str]:
    counts = images.described["new"]["counts"]
    missing = [name for name in task.classes if not counts.get(name)]
    if not missing:
        return []
    named = ", ".join(missing[:MAX_NAMED]) + (" …" if len(missing) > MAX_NAMED else "")
    return [
        f"no new image of {len(missing)} of the {len(task.classes)} classes of {task.name} ({named}): these are held "
        "by the parent's answers alone"
    ]


def _join_heads(classifier: Classifier, task: str, memory: Memory) -> tuple[Classifier, Memory]:
    """Join the heads of the newest task, of which it has several if classes were added, and what is stored of them."""
    numbers = [number for number, spec in enumerate(classifier.head_specs) if spec.task == task]
    if len(numbers) == 1:
        return classifier, memory
    linears = classifier.linears()
    joined = nn.Linear(linears[-1].in_features, sum(linears[number].out_features for number in numbers))
    with torch.no_grad():
        joined.weight.copy_(torch.cat([linears[number].weight for number in numbers]))
        joined.bias.copy_(torch.cat([linears[number].bias for number in numbers]))
    classifier.heads = nn.ModuleList([*linears[: numbers[0]], joined.to(linears[-1].weight)])
    classifier.head_specs = classifier.head_specs[: numbers[0] + 1]
    return classifier, _join_entries(memory, numbers)


def _join_entries(memory: Memory, numbers: Sequence[int]) -> Memory:
    """Join what is stored of several heads, row after row; entries of another form are left out."""
    joined: Memory = {}
    for name, value in memory.items():
        if isinstance(value, dict):
            joined[name] = _join_entries(value, numbers)
        elif not name.startswith(tuple(f"heads.{number}." for number in numbers)):
            joined[name] = value
    for end in ("weight", "bias"):
        parts = [memory.get(f"heads.{number}.{end}") for number in numbers]
        if all(isinstance(part, torch.Tensor) and part.dim() <= 2 for part in parts):
            joined[f"heads.{numbers[0]}.{end}"] = torch.cat([part for part in parts if part is not None])
    return joined
