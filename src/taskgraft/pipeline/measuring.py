"""What is measured of a run: predictions on both validation sets, and the numbers and cards made of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from taskgraft import metrics
from taskgraft.bundle import Bundle
from taskgraft.data.dataset import Dataset, open_images
from taskgraft.data.task_images import TaskData, match_task
from taskgraft.errors import InputError
from taskgraft.models.classifier import Classifier, inherited_parameters, old_class_counts
from taskgraft.models.inference import count_flops, measure_latency, predict
from taskgraft.pipeline import evidence
from taskgraft.results.predictions import Predictions
from taskgraft.types import Callbacks, Memoize, Task


def labeled(
    bundle: Bundle, data: Path, task: str | None, cache: Path | None, callbacks: Callbacks
) -> tuple[Task, Dataset]:
    """The images at a path and the task that their labels are of, found by its classes where none is named.

    Raises TaskgraftError when the model lacks the task or the images have classes that it does not know.
    """
    tasks = {known.name: known for known in bundle.classifier.tasks}
    if task is not None and task not in tasks:
        raise InputError(f"the model has no task {task!r}; it has {', '.join(tasks)}")
    owner = tasks[task] if task else match_task(data, bundle.classifier.tasks)
    found = open_images(
        data, owner.name, bundle.preprocessing, seed=0, classes=owner.classes, cache_folder=cache, as_split="val",
        progress=lambda done, total: callbacks.progress(f"reading {data.name}", done, total),
    )  # fmt: skip
    return owner, found


def predictions(
    classifier: Classifier,
    found: TaskData,
    known: Mapping[str, Predictions] = MappingProxyType({}),
    recall: Memoize | None = None,
) -> dict[str, Predictions]:
    """On the new and the old validation images; what is `known` of the old ones is not asked again.

    `recall` keeps what the backbone makes of them for later runs: for a classifier that has not been trained yet.
    """
    assert found.new.val is not None
    sets = {"new": predict(classifier, found.new.val, recall=recall)}
    if found.old_val is None:
        return sets
    return sets | {"old": known["old"] if "old" in known else predict(classifier, found.old_val, recall=recall)}


def tested(classifier: Classifier, found: TaskData) -> dict[str, Predictions]:
    """On the new task's test images, where there are any: asked once, at the end."""
    return {"test": predict(classifier, found.new.test)} if found.new.test else {}


def accuracies(
    sets: Mapping[str, Predictions], newest: str, parent: Mapping[str, Predictions] | None = None
) -> dict[str, float]:
    """Accuracy on the old images of each task that they are labeled for, and on the new ones beside a `parent`."""
    found = {}
    if "old" in sets:
        tasks = [task for task, target in sets["old"].labels.items() if (target >= 0).any()]
        found = {task: metrics.accuracy(sets["old"], task) for task in tasks}
    if parent is not None:
        found[evidence.label_of(newest, parent["new"].classes)] = metrics.accuracy(sets["new"], newest)
    return found


def unchanged(classifier: Classifier) -> bool:
    """Whether nothing that answers the old tasks can learn: then their answers need no second look while training."""
    plain = (
        classifier.softmax == "per-task" and len(old_class_counts(classifier)) == len(classifier.tasks) - 1
    )  # no old task has got further classes
    return plain and not any(value.requires_grad for value in inherited_parameters(classifier).values())


def agreements(parent: Predictions, child: Predictions) -> dict[str, float]:
    """Share of the new images on which the child answers each old task as the parent does."""
    return {task: float(metrics.agreement(parent, child, task).mean()) for task in parent.classes}


def arithmetic_of(child: Classifier, parent: Classifier, found: TaskData) -> dict[str, int]:
    """What one image costs, before and after."""
    assert found.new.val is not None
    return {"child": count_flops(child, found.new.val), "parent": count_flops(parent, found.new.val)}


def latency_of(child: Classifier, parent: Classifier, found: TaskData) -> dict[str, float]:
    """How long one image takes, before and after."""
    assert found.new.val is not None
    return measure_latency({"child": child, "parent": parent}, found.new.val)


def cards(
    known: Mapping[str, dict[str, Any]], found: TaskData, sets: Mapping[str, Predictions], newest: str
) -> dict[str, dict[str, Any]]:
    """The parent's cards, one for the new task, and new ones of old tasks that could be measured on the child."""
    made = dict(known)
    widened = newest in sets["new-parent"].classes
    if widened and "old" in sets and newest in sets["old"].labels:
        both, where = (
            _joined(sets["old"], sets["new"], newest),
            "old and new validation images, when classes were added",
        )
    else:
        both, where = sets["new"], "new validation images, when it was learnt"
    trained = dict(known.get(newest, {}).get("train_counts", {})) | found.described["new"]["counts"]
    made[newest] = evidence.card(both, newest, {name: n for name, n in trained.items() if n}, where)
    for task in sets["old"].labels if "old" in sets else ():
        if task != newest and _better(sets["old"], task, made.get(task)):
            counts = made.get(task, {}).get("train_counts", {})
            made[task] = evidence.card(sets["old"], task, counts, "old validation images, by the child")
    return made


def _better(old: Predictions, task: str, card: Mapping[str, Any] | None) -> bool:
    """Whether the old images at hand tell more of the child's answers than the card that came with the parent."""
    images = int((old.labels[task] >= 0).sum())
    return images > 0 and (card is None or "mean_posterior" not in card or images >= card.get("images", 0))


def _joined(one: Predictions, two: Predictions, task: str) -> Predictions:
    """One task's predictions on two sets of images."""
    labels = {task: np.concatenate([one.labels[task], two.labels[task]])}
    logits = {task: np.concatenate([one.logits[task], two.logits[task]])}
    return Predictions({task: one.classes[task]}, one.softmax, (*one.ids, *two.ids), labels, logits)
