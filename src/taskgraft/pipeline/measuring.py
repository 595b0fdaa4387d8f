"""What is measured of a run: predictions on the validation and test images, results and task cards made of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from taskgraft import calibration, metrics
from taskgraft.bundle import Bundle
from taskgraft.data.dataset import Dataset, open_images
from taskgraft.data.task_images import TaskData, describe_exclusions, match_task
from taskgraft.errors import InputError
from taskgraft.models.classifier import Classifier, inherited_parameters, old_class_counts
from taskgraft.models.inference import predict
from taskgraft.quantification.task_card import describe_for_quantification
from taskgraft.results.files import escape_surrogates
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
        callbacks: Progress callbacks.

    Raises:
        InputError: The model does not have the task.
        DataError: The images have classes that the task does not have.
    """
    tasks = {item.name: item for item in bundle.classifier.tasks}
    if task is not None and task not in tasks:
        raise InputError(f"the model has no task {task!r}; available: {', '.join(tasks)}")
    labeled = tasks[task] if task else match_task(data, bundle.classifier.tasks)
    images = open_images(
        data, labeled.name, bundle.preprocessing, seed=0, classes=labeled.classes, cache_folder=cache, as_split="val",
        progress=lambda done, total: callbacks.progress(f"reading {data.name}", done, total),
    )  # fmt: skip
    for line in describe_exclusions(images):
        callbacks.info(f"{escape_surrogates(data.name)}: {line}")
    return labeled, images


def predict_validation(
    classifier: Classifier,
    images: TaskData,
    old: Predictions | None = None,
    tensor_cache: Memoize | None = None,
) -> dict[str, Predictions]:
    """Predict the validation images.

    Args:
        classifier: The classifier.
        images: Images of a run.
        old: Predictions on the old tasks' images where training cannot change them; None = compute them.
        tensor_cache: Stores the backbone's features for later runs: for a classifier that has not been trained yet.

    Returns:
        "new": the new task's images; "old": those of the old tasks, if there are any.
    """
    assert images.new.val is not None
    sets = {"new": predict(classifier, images.new.val, cache=tensor_cache)}
    if images.old_val is not None:
        sets["old"] = old or predict(classifier, images.old_val, cache=tensor_cache)
    return sets


def compute_accuracies(sets: Mapping[str, Predictions]) -> dict[str, float]:
    """Return the accuracy of each task that the old validation images, if there are any, are labeled for."""
    if "old" not in sets:
        return {}
    tasks = [task for task, labels in sets["old"].labels.items() if (labels >= 0).any()]
    return {task: metrics.accuracy(sets["old"], task) for task in tasks}


def compute_agreements(parent: Predictions, child: Predictions) -> dict[str, float]:
    """Return for each old task the fraction of images for which the child predicts the parent's class.

    A task is missing where all images show classes that the child added to it.
    """
    same = {task: metrics.agreement(parent, child, task) for task in parent.classes}
    return {task: float(values.mean()) for task, values in same.items() if len(values)}


def old_outputs_are_frozen(classifier: Classifier) -> bool:
    """Return whether training cannot change the outputs of old tasks, which then need not be evaluated again."""
    separate = classifier.softmax == "per-task" and len(old_class_counts(classifier)) == len(classifier.tasks) - 1
    return separate and not any(value.requires_grad for value in inherited_parameters(classifier).values())


def compute_task_results(
    sets: Mapping[str, Predictions], newest: str, *, refreshed: bool = False
) -> tuple[TaskResult, ...]:
    """Compute the results of each task; classes that were added to an old task have a result of their own.

    Args:
        sets: The child's predictions on the new task's validation images ("new"), on old ones ("old") and on test
            images ("test"), and the parent's ("new-parent", "old-parent"), as far as they exist.
        newest: The task that was learned.
        refreshed: Whether it is an old task that learned new images: those have a result of their own.

    Returns:
        Results of the old tasks, then of the new one, which has those of the parent too where it knew all its classes:
        a teacher that is compressed. None is new where the images have no labels.
    """
    parent = dict(sets["new-parent"].classes) if "new-parent" in sets else {}
    if newest not in sets["new"].labels:  # a merge, whose images have no labels
        return tuple(_compute_old_result(task, classes, sets) for task, classes in parent.items())
    from_teacher = _compare(sets["new-parent"], sets["new"], newest) if is_taught(sets, newest) else {}
    if from_teacher and not refreshed:
        del parent[newest]
    old = [
        _compute_old_result(task, classes, sets, measures_agreement=not refreshed or task != newest)
        for task, classes in parent.items()
    ]
    name = name_result(newest, parent, refreshed=refreshed)
    new = TaskResult(
        name=name,
        classes=sets["new"].classes[newest][0 if refreshed else len(parent.get(newest, ())) :],
        new=True,
        added_to="" if name == newest or refreshed else newest,
        refreshes=newest if refreshed else "",
        **{"child": metrics.bootstrap_interval(metrics.correct(sets["new"], newest)), **from_teacher},
        test=metrics.bootstrap_interval(metrics.correct(sets["test"], newest)) if "test" in sets else None,
        **_measure_balance(sets["new"], newest),
    )
    if new.added_to:  # answering always one of them would lose all old classes: guessing is among all
        new = new.model_copy(update={"chance": 1 / len(sets["new"].classes[newest]), "majority": ""})
    return (*old, new)


def is_taught(sets: Mapping[str, Predictions], newest: str) -> bool:
    """Whether the parent has all classes of the new task already: it is then the teacher of a compression."""
    return "new-parent" in sets and sets["new-parent"].classes.get(newest) == sets["new"].classes[newest]


def name_result(newest: str, old_tasks: Collection[str], *, refreshed: bool = False) -> str:
    """Return what results of the new images are called: by the task, and by what is new of it where the task is old."""
    if refreshed:
        return f"{newest}, new images"
    return f"{newest}, added classes" if newest in old_tasks else newest


def _compare(parent: Predictions, child: Predictions, task: str) -> dict[str, Any]:
    before, after = metrics.correct(parent, task), metrics.correct(child, task)
    flips = before * (1 - after)
    intervals = {"parent": before, "child": after, "forgetting": before - after, "negative_flips": flips}
    return {name: metrics.bootstrap_interval(values) for name, values in intervals.items()}


def _measure_balance(predictions: Predictions, task: str) -> dict[str, Any]:
    balance = metrics.class_balance(predictions, task)
    return {
        "chance": balance.chance,
        "majority": balance.majority,
        "balanced": balance.balanced if balance.uneven else None,
        "macro_f1": metrics.macro_f1(predictions, task),
        "top_5": metrics.top_5(predictions, task),
        "never_predicted": balance.never_predicted,
    }


def _compute_old_result(
    task: str, classes: tuple[str, ...], sets: Mapping[str, Predictions], *, measures_agreement: bool = True
) -> TaskResult:
    child, parent = sets.get("old"), sets.get("old-parent")
    accuracies: dict[str, Any] = {}
    if child is not None and task in child.labels:
        accuracies["child"] = metrics.bootstrap_interval(metrics.correct(child, task))
        accuracies |= _measure_balance(child, task)
        if parent is not None:
            accuracies |= _compare(parent, child, task)
    same = metrics.agreement(sets["new-parent"], sets["new"], task)
    pairs = [(sets[name], sets[f"{name}-parent"]) for name in ("new", "old") if name in sets]
    return TaskResult(
        name=task,
        classes=classes,
        new=False,
        agreement=metrics.bootstrap_interval(same) if len(same) and measures_agreement else None,
        identical=all(np.array_equal(child.logits[task], parent.logits[task]) for child, parent in pairs),
        **accuracies,
    )


def build_task_cards(
    cards: Mapping[str, dict[str, Any]],
    images: TaskData,
    sets: Mapping[str, Predictions],
    newest: str,
    *,
    refreshed: bool = False,
) -> dict[str, dict[str, Any]]:
    """Build the child's task cards.

    Args:
        cards: The parent's cards by task.
        images: Images of the run.
        sets: Predictions by set, as of `compute_task_results`.
        newest: The task that was learned.
        refreshed: Whether it is an old task that learned new images.

    Returns:
        The parent's cards, one for the new task, and new ones of old tasks that could be measured better on the child.
    """
    child_cards = dict(cards)
    predictions, measured_on = sets["new"], "new validation images, when it was learned"
    widened = "new-parent" in sets and newest in sets["new-parent"].classes and not is_taught(sets, newest)
    if (widened or refreshed) and "old" in sets and newest in sets["old"].labels:
        predictions = _concatenate(sets["old"], sets["new"], newest)
        measured_on = f"old and new validation images, when {'it was refreshed' if refreshed else 'classes were added'}"
    counts = dict(cards.get(newest, {}).get("train_counts", {})) | images.described["new"]["counts"]
    counts = {name: count for name, count in counts.items() if count}
    if newest in predictions.labels:
        child_cards[newest] = build_task_card(predictions, newest, counts, measured_on)
    for task, labels in sets["old"].labels.items() if "old" in sets else ():
        card, count = cards.get(task), int((labels >= 0).sum())
        better = card is None or "mean_posterior" not in card or count >= card.get("images", 0)
        if count and better and (task != newest or newest not in predictions.labels):
            counts = (card or {}).get("train_counts", {})
            child_cards[task] = build_task_card(sets["old"], task, counts, "old validation images, by the child")
    return child_cards


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
        Plain values, with a confusion matrix [K, K + 1] of true by predicted class (the last column: a class of another
        task), a temperature (None without enough images), and what `distribution` corrects prevalences with.
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
    """Return one task's predictions on two sets of images."""
    labels = {task: np.concatenate([one.labels[task], other.labels[task]])}
    logits = {task: np.concatenate([one.logits[task], other.logits[task]])}
    return Predictions({task: one.classes[task]}, one.softmax, (*one.ids, *other.ids), labels, logits)
