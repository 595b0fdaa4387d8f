"""What is measured of a run: predictions on the validation and test images, results and task cards made of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from taskgraft import calibration, metrics
from taskgraft.bundle import Bundle
from taskgraft.data.dataset import Dataset, open_images
from taskgraft.data.task_images import TaskData, match_task
from taskgraft.errors import InputError
from taskgraft.models.classifier import Classifier, inherited_parameters, old_class_counts
from taskgraft.models.inference import predict
from taskgraft.quantification.task_card import describe_for_quantification
from taskgraft.results.predictions import Predictions
from taskgraft.results.record import TaskResult
from taskgraft.types import Callbacks, Memoize, Task


def open_labeled(
    bundle: Bundle, data: Path, task: str | None, cache: Path | None, callbacks: Callbacks
) -> tuple[Task, Dataset]:
    """Open images that are labeled for one of a model's tasks.

    Args:
        bundle: The model.
        data: Images; all count as validation images.
        task: The task that they are labeled for; None = the one whose classes they have.
        cache: Folder of decoded pixels; None = in memory only.
        callbacks: Told of progress.

    Returns:
        The task and the images.

    Raises:
        InputError: The model does not have the task.
        DataError: The images have classes that the task does not have.
    """
    tasks = {known.name: known for known in bundle.classifier.tasks}
    if task is not None and task not in tasks:
        raise InputError(f"the model has no task {task!r}; available: {', '.join(tasks)}")
    owner = tasks[task] if task else match_task(data, bundle.classifier.tasks)
    images = open_images(
        data, owner.name, bundle.preprocessing, seed=0, classes=owner.classes, cache_folder=cache, as_split="val",
        progress=lambda done, total: callbacks.progress(f"reading {data.name}", done, total),
    )  # fmt: skip
    return owner, images


def predict_validation(
    classifier: Classifier,
    images: TaskData,
    known: Mapping[str, Predictions] = MappingProxyType({}),
    tensor_cache: Memoize | None = None,
) -> dict[str, Predictions]:
    """Predict the validation images.

    Args:
        classifier: The classifier.
        images: Images of a run.
        known: Predictions by set; "old" is taken from here if it is there.
        tensor_cache: Stores the backbone's features for later runs: for a classifier that has not been trained yet.

    Returns:
        "new": the new task's images; "old": those of the old tasks, if there are any.
    """
    assert images.new.val is not None
    sets = {"new": predict(classifier, images.new.val, cache=tensor_cache)}
    if images.old_val is not None:
        sets["old"] = known["old"] if "old" in known else predict(classifier, images.old_val, cache=tensor_cache)
    return sets


def predict_test(classifier: Classifier, images: TaskData) -> dict[str, Predictions]:
    """Predict the new task's test images, once, at the end.

    Args:
        classifier: The finished classifier.
        images: Images of a run.

    Returns:
        "test", if there are such images.
    """
    return {"test": predict(classifier, images.new.test)} if images.new.test else {}


def compute_accuracies(sets: Mapping[str, Predictions]) -> dict[str, float]:
    """Compute accuracies on the old validation images.

    Args:
        sets: Predictions by set.

    Returns:
        Accuracy of each task that the old images are labeled for.
    """
    if "old" not in sets:
        return {}
    tasks = [task for task, target in sets["old"].labels.items() if (target >= 0).any()]
    return {task: metrics.accuracy(sets["old"], task) for task in tasks}


def compute_agreements(parent: Predictions, child: Predictions) -> dict[str, float]:
    """Compute how often the child predicts the same class as the parent.

    Args:
        parent: The parent's predictions on the new task's images.
        child: The child's.

    Returns:
        Fraction of the images for each old task.
    """
    return {task: float(metrics.agreement(parent, child, task).mean()) for task in parent.classes}


def keeps_old_outputs(classifier: Classifier) -> bool:
    """Whether training cannot change the outputs of old tasks, which then need not be evaluated again.

    Args:
        classifier: A classifier in training.

    Returns:
        True if everything that computes them is frozen.
    """
    separate = classifier.softmax == "per-task" and len(old_class_counts(classifier)) == len(classifier.tasks) - 1
    return separate and not any(value.requires_grad for value in inherited_parameters(classifier).values())


def compute_task_results(sets: Mapping[str, Predictions], newest: str) -> tuple[TaskResult, ...]:
    """Compute the results of each task; classes that were added to an old task have a result of their own.

    Args:
        sets: The child's predictions on the new task's validation images ("new"), on old ones ("old") and on test
            images ("test"), and the parent's ("new-parent", "old-parent"), as far as they exist.
        newest: The task that was learned.

    Returns:
        Results of the old tasks, then of the new one.
    """
    parent = sets["new-parent"].classes if "new-parent" in sets else {}
    old = [_compute_old_result(task, classes, sets) for task, classes in parent.items()]
    added = sets["new"].classes[newest][len(parent.get(newest, ())) :]
    name = name_result(newest, parent)
    new = TaskResult(
        name=name,
        classes=added,
        new=True,
        added_to="" if name == newest else newest,
        child=metrics.bootstrap_interval(metrics.correct(sets["new"], newest)),
        test=metrics.bootstrap_interval(metrics.correct(sets["test"], newest)) if "test" in sets else None,
    )
    return (*old, new)


def name_result(newest: str, old_tasks: Collection[str]) -> str:
    """Name the results of the new images.

    Args:
        newest: The task that was learned.
        old_tasks: The parent's tasks.

    Returns:
        The task's name, or another one where classes were added to an old task.
    """
    return f"{newest}, added classes" if newest in old_tasks else newest


def _compute_old_result(task: str, classes: tuple[str, ...], sets: Mapping[str, Predictions]) -> TaskResult:
    child, parent = sets.get("old"), sets.get("old-parent")
    changes: dict[str, Any] = {}
    if child is not None and task in child.labels:
        after = metrics.correct(child, task)
        changes["child"] = metrics.bootstrap_interval(after)
        if parent is not None:
            before = metrics.correct(parent, task)
            changes |= {
                "parent": metrics.bootstrap_interval(before),
                "forgetting": metrics.bootstrap_interval(before - after),
            }
    pairs = [(sets[name], sets[f"{name}-parent"]) for name in ("new", "old") if name in sets]
    return TaskResult(
        name=task,
        classes=classes,
        new=False,
        agreement=metrics.bootstrap_interval(metrics.agreement(sets["new-parent"], sets["new"], task)),
        identical=all(np.array_equal(one.logits[task], other.logits[task]) for one, other in pairs),
        **changes,
    )


def build_task_cards(
    cards: Mapping[str, dict[str, Any]], images: TaskData, sets: Mapping[str, Predictions], newest: str
) -> dict[str, dict[str, Any]]:
    """Build the child's task cards.

    Args:
        cards: The parent's cards by task.
        images: Images of the run.
        sets: Predictions by set, as of `compute_task_results`.
        newest: The task that was learned.

    Returns:
        The parent's cards, one for the new task, and new ones of old tasks that could be measured better on the child.
    """
    built = dict(cards)
    predictions, measured_on = sets["new"], "new validation images, when it was learned"
    widened = "new-parent" in sets and newest in sets["new-parent"].classes
    if widened and "old" in sets and newest in sets["old"].labels:
        predictions = _concatenate(sets["old"], sets["new"], newest)
        measured_on = "old and new validation images, when classes were added"
    counts = dict(cards.get(newest, {}).get("train_counts", {})) | images.described["new"]["counts"]
    counts = {name: count for name, count in counts.items() if count}
    built[newest] = build_task_card(predictions, newest, counts, measured_on)
    for task, labels in sets["old"].labels.items() if "old" in sets else ():
        card, number = cards.get(task), int((labels >= 0).sum())
        better = card is None or "mean_posterior" not in card or number >= card.get("images", 0)
        if task != newest and number and better:
            counts = (card or {}).get("train_counts", {})
            built[task] = build_task_card(sets["old"], task, counts, "old validation images, by the child")
    return built


def build_task_card(
    predictions: Predictions, task: str, train_counts: Mapping[str, int], measured_on: str
) -> dict[str, Any]:
    """Build a task card: what a later user must know of a task once its images are gone.

    Args:
        predictions: Predictions on labeled images.
        task: The task.
        train_counts: Number of training images of each class.
        measured_on: Describes the labeled images.

    Returns:
        Plain values: training counts, confusion matrix [K, K + 1] (rows: true class, columns: predicted class, the last
        one: a class of another task), accuracy, calibration error, temperature (None without enough images), and what
        `distribution` corrects prevalences with.
    """
    labels, logits = predictions.labels[task], predictions.logits[task]
    fitted = calibration.calibrate(logits, labels)
    return {
        "task": task,
        "classes": list(predictions.classes[task]),
        "measured_on": measured_on,
        "images": int((labels >= 0).sum()),
        "train_counts": dict(train_counts),
        "accuracy": metrics.accuracy(predictions, task),
        "calibration_error": metrics.expected_calibration_error(logits, labels),
        "temperature": fitted.temperature if fitted else None,
        "calibration": fitted._asdict() if fitted else None,
        "confusion": metrics.confusion_matrix(predictions, task).tolist(),
        **describe_for_quantification(logits, labels, fitted.temperature if fitted else 1.0),
    }


def _concatenate(one: Predictions, other: Predictions, task: str) -> Predictions:
    """One task's predictions on two sets of images."""
    labels = {task: np.concatenate([one.labels[task], other.labels[task]])}
    logits = {task: np.concatenate([one.logits[task], other.logits[task]])}
    return Predictions({task: one.classes[task]}, one.softmax, (*one.ids, *other.ids), labels, logits)
