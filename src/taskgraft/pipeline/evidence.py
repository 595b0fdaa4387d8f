"""What a run showed, by task and with intervals, and the writing of it into the run folder."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from taskgraft import calibration, metrics, report
from taskgraft.bundle import Bundle, digests, write_bundle
from taskgraft.config import TrainingConfig
from taskgraft.data.task_images import TaskData
from taskgraft.errors import ResultError
from taskgraft.quantification.task_card import describe_for_quantification
from taskgraft.results.files import write_text
from taskgraft.results.predictions import Predictions, save_predictions
from taskgraft.results.record import Record, TaskResult
from taskgraft.training import run_folder


def task_results(sets: Mapping[str, Predictions], newest: str) -> tuple[TaskResult, ...]:
    """Each task before and after; classes that were added to an old task have a result of their own.

    `sets` holds the child's predictions on the new images for validation ("new") and on old ones ("old", where there
    are any), and the parent's ("new-parent", "old-parent", where there is a parent). `newest` is the task learnt.
    """
    known = sets["new-parent"].classes if "new-parent" in sets else {}
    old = [_result(name, name, classes, False, sets) for name, classes in known.items()]
    added = sets["new"].classes[newest][len(known.get(newest, ())) :]
    return (*old, _result(label_of(newest, known), newest, added, True, sets))


def label_of(newest: str, known: Collection[str]) -> str:
    """What results of the new images are called: by the task, or by its added classes where the task is old."""
    return f"{newest}, added classes" if newest in known else newest


def _result(name: str, task: str, classes: tuple[str, ...], new: bool, sets: Mapping[str, Predictions]) -> TaskResult:
    child = sets["new"] if new else sets.get("old")
    before = None if new else sets.get("old-parent")
    result = TaskResult(name=name, classes=classes, new=new, added_to="" if name == task else task)
    changes = {}
    if child is not None and task in child.labels:
        after = metrics.correct(child, task)
        changes["child"] = metrics.bootstrap_interval(after)
        if before is not None:
            held = metrics.correct(before, task)
            changes |= {
                "parent": metrics.bootstrap_interval(held),
                "forgetting": metrics.bootstrap_interval(held - after),
            }
    if new and "test" in sets:
        changes["test"] = metrics.bootstrap_interval(metrics.correct(sets["test"], task))
    parent = sets.get("new-parent")
    if parent is not None and not new:
        changes["agreement"] = metrics.bootstrap_interval(metrics.agreement(parent, sets["new"], task))
        pairs = [(sets[name], sets[f"{name}-parent"]) for name in ("new", "old") if name in sets]
        changes["identical"] = all(np.array_equal(one.logits[task], two.logits[task]) for one, two in pairs)
    return result.model_copy(update=changes)


def card(predictions: Predictions, task: str, trained: Mapping[str, int], measured_on: str) -> dict:
    """The task card: what a later user must know of a task once its images are gone.

    Class counts of the training images, the confusion matrix [K, K + 1] on validation images (rows true, columns
    answered, the last one: lost to another task), accuracy and calibration error; the temperature, what it brings
    (on images that did not choose it), and what `distribution` corrects shares with. Without enough images for a
    temperature, `temperature` is None.
    """
    labels, logits = predictions.labels[task], predictions.logits[task]
    fitted = calibration.calibrate(logits, labels)
    return {
        "task": task,
        "classes": list(predictions.classes[task]),
        "measured_on": measured_on,
        "images": int((labels >= 0).sum()),
        "train_counts": dict(trained),
        "accuracy": metrics.accuracy(predictions, task),
        "calibration_error": metrics.expected_calibration_error(logits, labels),
        "temperature": fitted.temperature if fitted else None,
        "calibration": fitted._asdict() if fitted else None,
        "confusion": metrics.confusion_matrix(predictions, task).tolist(),
        **describe_for_quantification(logits, labels, fitted.temperature if fitted else 1.0),
    }


def ancestor(record: Record) -> dict[str, Any]:
    """An entry of a lineage: what was extended, how, with which results.

    The parent's own lineage is left out: its entries stand before this one, and would double at every step.
    """
    results = {task.name: task.child.mean for task in record.tasks if task.child}
    return {
        "parent": {name: value for name, value in record.parent.items() if name != "lineage"},
        "method": record.method,
        "task": record.tasks[-1].name,
        "accuracy": results,
    }


def settings_with_reasons(
    config: TrainingConfig, default: TrainingConfig, reasons: Mapping[str, str]
) -> tuple[tuple[str, str, str], ...]:
    """Each setting with its value and why it has it."""
    return tuple(
        (name, str(value), reasons.get(name, "default" if value == getattr(default, name) else "set explicitly"))
        for name, value in asdict(config).items()
    )


def warnings_of(tasks: Sequence[TaskResult], described: Mapping[str, Any]) -> list[str]:
    """What a reader must know before believing the numbers."""
    notes = [f"{name}: {note}" for name, part in described.items() for note in part["notes"]]
    notes += [
        f"on {task.test.n} test images, which chose nothing, {task.name} reaches {task.test.mean:.1%} "
        f"(95 % interval {task.test.low:.1%} to {task.test.high:.1%})"
        for task in tasks
        if task.test
    ]
    notes += [
        f"the parent is near chance on {task.name}: check the preprocessing and the order of its class names"
        for task in tasks
        if task.parent and task.parent.mean < 2 / len(task.classes)
    ]
    return notes


def inputs_of(record: Record) -> dict[str, str]:
    """The digest of everything that a run was made from, by name."""
    parent = record.parent
    found = {"parent": str(parent["digest"])}
    found |= {f"parent/{name}": mark for name, mark in parent.get("files", {}).items()}
    found |= {"labels": parent["labels"]} if "labels" in parent else {}
    return found | {f"images/{name}": str(part["fingerprint"]) for name, part in record.data.items()}


def publish(out: Path, bundle: Bundle, record: Record, sets: Mapping[str, Predictions], found: TaskData) -> None:
    """Write the bundle and everything that is read beside it; the run counts as done once the model is whole."""
    save_predictions(out / "predictions.npz", sets)
    write_text(out / "record.json", record.model_dump_json(indent=1))
    write_text(out / "README.md", report.format_model_card(record))
    write_bundle(out, bundle, method=record.method, parent=record.parent)
    digests.write(out, inputs_of(record))
    run_folder.close_run(out)
    tell(out, record, sets, found)


def tell(out: Path, record: Record, sets: Mapping[str, Predictions], found: TaskData) -> None:
    """Write the report of a run whose model is whole; raises TaskgraftError (code 1) that says so where it cannot be made."""
    shutil.rmtree(out / "state", ignore_errors=True)  # of no use any more; checkpoints may hold replayed images
    try:
        thumbnails = report.ThumbnailMaker({"new": found.new.val, "old": found.old_val})
        page = report.render_run(record, sets, thumbnails)
        thumbnails.save(out)
        write_text(out / "report.html", page)
    except Exception as error:  # whatever a page stumbles over, the model is there
        reason = (str(error).splitlines() or [""])[0][:160]
        raise ResultError(
            f"the model in {out} is whole, but its report could not be made ({type(error).__name__}: {reason}); "
            "the same train or extend with --resume goes on from there, any other command as it stands"
        ) from error  # fmt: skip


def surroundings(out: Path) -> list[str]:
    """A note where a run was stopped and went on with other versions, or on another processor."""
    moved = run_folder.moves(out)
    return [f"it went on elsewhere than it began ({'; '.join(moved)}): equal bits are not promised"] if moved else []
