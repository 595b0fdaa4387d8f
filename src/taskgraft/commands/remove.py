"""`taskgraft remove`: a task, or some of its classes, leaves a model; what is left answers as before."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from taskgraft.bundle import Bundle, digests, open_parent, read_bundle, write_bundle
from taskgraft.data.class_names import find_matches
from taskgraft.errors import InputError
from taskgraft.models.restructuring import Restructured, prune_memory, restructure
from taskgraft.pipeline import measuring
from taskgraft.results.files import (
    escape_surrogates,
    publish_folder,
    require_absent,
    temporary_folder,
)
from taskgraft.results.predictions import Predictions, load_predictions
from taskgraft.types import Callbacks, PathLike, Task

Cards = dict[str, dict[str, Any]]


class Removed(NamedTuple):
    """A model from which a task or classes were removed.

    Attributes:
        bundle: The model that is left, as read from `out`; in memory after a dry run.
        out: Its folder.
        task: The task that is gone, or that lost classes.
        classes: The classes that are gone.
        notes: What else changed: task cards, side networks, what methods remember.
    """

    bundle: Bundle
    out: Path
    task: str
    classes: tuple[str, ...]
    notes: tuple[str, ...]

    def __fspath__(self) -> str:
        """Return the folder, so that the result can be given wherever a model is."""
        return str(self.out)


def remove(
    model: PathLike,
    out: PathLike,
    *,
    task: str,
    classes: str | Iterable[str] = (),
    arch: str | None = None,
    labels: PathLike | None = None,
    preprocessing: str | None = None,
    parent_task: str | None = None,
    dry_run: bool = False,
    callbacks: Callbacks = Callbacks(),  # noqa: B008 - immutable
) -> Removed:
    """Remove a task, or some of its classes, from a model. Nothing is trained, and no image is needed.

    The logits of everything that is left stay bit-identical. Side networks that only a removed task used go too.

    Args:
        model: A bundle, or any other model that `extend` accepts; not changed.
        out: Folder to write; must not exist or be empty.
        task: The task.
        classes: Those of its classes that go; none = the whole task.
        arch: timm architecture of a model that is not a bundle.
        labels: Its class names.
        preprocessing: Its preprocessing.
        parent_task: Name for its task; None = that of its file.
        dry_run: Only check everything; the result is in memory, and nothing is written.
        callbacks: `info` is called with what was inferred.

    Returns:
        The model that is left, and what else changed.

    Raises:
        InputError: There is no such task or class, too little would be left, or `out` is not empty.
        CheckpointError: The model cannot be opened.
    """
    out = Path(out)
    require_absent(out)
    bundle = open_parent(model, arch=arch, labels=labels, preprocessing=preprocessing, task=parent_task)
    if bundle.folder is None:
        for note in bundle.notes:
            callbacks.info(f"model: {note}")
    kept = _find_kept(bundle.tasks, task, (classes,) if isinstance(classes, str) else tuple(classes))
    restructured = restructure(bundle.classifier, {task: kept})
    before = next(item for item in bundle.tasks if item.name == task)
    gone = tuple(name for row, name in enumerate(before.classes) if row not in kept)
    cards, notes = _revise_cards(bundle, before, kept)
    origin = {
        "source": escape_surrogates(bundle.source),
        "digest": bundle.digest,
        "architecture": bundle.arch,
        "tasks": [item.name for item in bundle.tasks],
    }
    remaining = replace(
        bundle,
        classifier=restructured.classifier,
        memory=prune_memory(bundle.memory, bundle.classifier, restructured),
        cards=cards,
        lineage=(*bundle.lineage, _build_lineage_entry(origin, task, gone if kept else None)),
    )
    notes += [*_describe_side_networks(bundle, restructured), *_describe_memory(bundle, remaining)]
    if dry_run:
        return Removed(replace(remaining, folder=None), out, task, gone, tuple(notes))
    with temporary_folder(out) as folder:
        write_bundle(folder, remaining, method="remove", parent=origin)
        digests.write(folder, {"parent": bundle.digest})
        publish_folder(folder, out)
    return Removed(read_bundle(out), out, task, gone, tuple(notes))


def _find_kept(tasks: Sequence[Task], task: str, classes: Sequence[str]) -> tuple[int, ...]:
    """Return the numbers of the classes of a task that stay; none where the whole task goes.

    Raises:
        InputError: There is no such task or class, or too little would be left.
    """
    names = [item.name for item in tasks]
    if task not in names:
        raise InputError(f"--task {task!r}: the model has no such task; it has {', '.join(names)}")
    own = tasks[names.index(task)].classes
    if not classes and len(tasks) == 1:
        raise InputError(
            f"--task {task!r}: it is the model's only task, so nothing would be left; name some of its --classes, or "
            "delete the model's folder"
        )
    unknown = [name for name in classes if name not in own]
    if unknown:
        match = find_matches(unknown[:1], own)
        listed = ", ".join(own[:10]) + (" …" if len(own) > 10 else "")
        hint = f"did you mean {match[0].suggestion!r}?" if match else f"it has {listed}"
        raise InputError(f"--classes {unknown[0]!r}: the task {task!r} has no such class; {hint}")
    kept = tuple(row for row, name in enumerate(own) if name not in classes) if classes else ()
    if classes and len(kept) < 2:
        left = f"one of its {len(own)} classes ({own[kept[0]]})" if kept else f"none of its {len(own)} classes"
        advice = "leave --classes out to remove the whole task" if len(tasks) > 1 else "name fewer"
        raise InputError(f"--classes: the task {task!r} would keep {left}, but a classifier needs two; {advice}")
    return kept


def _build_lineage_entry(origin: dict[str, Any], task: str, classes: Sequence[str] | None) -> dict[str, Any]:
    """Return the entry of a removal in a lineage: of the listed classes, or of the whole task."""
    gone = {"task": task, **({} if classes is None else {"classes": list(classes)})}
    return {"parent": origin, "method": "remove", "task": task, "removed": gone, "accuracy": {}}


def _revise_cards(bundle: Bundle, task: Task, kept: Sequence[int]) -> tuple[Cards, list[str]]:
    """Return the task cards of what is left, and what became of the others."""
    if bundle.classifier.softmax == "joint":  # every card counts the answers that classes of other tasks take
        note = "one softmax over all tasks: probabilities change, and the task cards were left out"
        return {}, [note]
    cards = {name: card for name, card in bundle.cards.items() if name != task.name}
    if not kept or task.name not in bundle.cards:
        return cards, []
    predictions = _select_predictions(bundle.folder, task, kept)
    if predictions is None:
        return cards, [
            f"the task card of {task.name} was left out, since its temperature and confusions were those of all "
            f"classes: renew it with calibrate"
        ]
    counts = bundle.cards[task.name].get("train_counts", {})
    counts = {name: count for name, count in counts.items() if name in predictions.classes[task.name]}
    measured_on = "stored predictions on validation images, when classes were removed"
    cards[task.name] = measuring.build_task_card(predictions, task.name, counts, measured_on)
    count = len(predictions.ids)
    return cards, [f"the task card of {task.name} was computed again, from the stored predictions on {count} images"]


def _select_predictions(folder: Path | None, task: Task, kept: Sequence[int]) -> Predictions | None:
    """Return the stored predictions on images of the classes that stay, among these alone; None without any."""
    if folder is None or not (folder / "predictions.npz").is_file():
        return None
    sets = load_predictions(folder / "predictions.npz")
    usable = [
        one
        for name, one in sets.items()
        if name in ("old", "new") and task.name in one.labels and one.classes.get(task.name) == task.classes
    ]
    renumbered = np.full(len(task.classes) + 1, -1, np.int64)  # the last is that of -1: no label
    renumbered[list(kept)] = np.arange(len(kept))
    labels = np.concatenate([renumbered[one.labels[task.name]] for one in usable]) if usable else np.empty(0, np.int64)
    if not (labels >= 0).any():
        return None
    logits = np.concatenate([one.logits[task.name][:, list(kept)] for one in usable])
    ids = [name for one in usable for name in one.ids]
    rows = np.flatnonzero(labels >= 0)
    names = tuple(task.classes[row] for row in kept)
    return Predictions(
        {task.name: names},
        "per-task",
        tuple(ids[row] for row in rows),
        {task.name: labels[rows]},
        {task.name: logits[rows]},
    )


def _describe_side_networks(bundle: Bundle, restructured: Restructured) -> list[str]:
    if restructured.branch is not None:
        return ["its own last stages took the place of the shared ones: the model is one plain network now"]
    count = len(bundle.classifier.extras) - len(restructured.extras)
    task = next(iter(restructured.kept))
    return [f"{count} side network{'s' * (count > 1)} that only {task} used went too"] * bool(count)


def _describe_memory(before: Bundle, after: Bundle) -> list[str]:
    """Say what methods still remember of a model from which something was removed."""
    lost = sorted(before.memory.keys() - after.memory.keys())
    notes = [f"nothing is left of what {', '.join(lost)} stored"] if lost else []
    if after.memory:
        names = ", ".join(sorted(after.memory))
        notes.append(f"what {names} stored of shared weights still counts the images of what was removed")
    return notes
