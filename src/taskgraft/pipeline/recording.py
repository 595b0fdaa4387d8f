"""The record of a run: settings and reasons, results, costs, and what a reader must know before believing them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from taskgraft.bundle import digests
from taskgraft.config import TrainingConfig
from taskgraft.methods import composition
from taskgraft.models.classifier import Classifier
from taskgraft.models.inference import count_flops, measure_latency
from taskgraft.pipeline import measuring
from taskgraft.pipeline.opening import Opened
from taskgraft.pipeline.request import Request
from taskgraft.results.files import digest, escape_surrogates
from taskgraft.results.predictions import Predictions
from taskgraft.results.record import Record, TaskResult, versions
from taskgraft.training import run_folder
from taskgraft.training.trainer import Fitted
from taskgraft.types import Memory


def build_record(
    opened: Opened,
    fitted: Fitted,
    classifier: Classifier,
    memory: Memory,
    sets: Mapping[str, Predictions],
    out: Path,
    *,
    command: str,
    seconds: Mapping[str, float],
) -> Record:
    """Build the record of a run.

    Args:
        opened: The request.
        fitted: The training.
        classifier: The finished child.
        memory: What each method stores.
        sets: Predictions by set, as of `measuring.compute_task_results`.
        out: The run folder.
        command: The command that was typed.
        seconds: Seconds of each part of the run.

    Returns:
        The record; flops and latency only of an extension.
    """
    request, parent, config = opened.request, opened.parent, fitted.config
    tasks = measuring.compute_task_results(sets, request.task)
    measured = [task.child.mean for task in tasks if task.child]
    size = sum(value.numel() for value in classifier.parameters())
    old_size, flops, seconds_per_image, history = 0, {}, {}, []
    if opened.old_tasks:
        old_size = sum(value.numel() for value in parent.classifier.parameters())
        both, images = {"child": classifier, "parent": parent.classifier}, opened.images.new.val
        assert images is not None
        flops = {name: count_flops(model, images) for name, model in both.items()}
        seconds_per_image = measure_latency(both, images)
        history = run_folder.read_metrics(parent.folder) if parent.folder else []
    return Record(
        command=command,
        seed=config.seed,
        method=opened.method,
        config=asdict(config),
        parent=_describe_parent(opened),
        data=opened.images.described,
        settings=explain_settings(config, opened.default_config, _find_reasons(fitted, request.config, out)),
        tasks=tasks,
        score=sum(measured) / len(measured) if len(measured) == len(tasks) else None,
        step=fitted.step,
        history=fitted.history,
        parent_history=tuple(history),
        parameters={"child": size, "parent": old_size, "added": size - old_size},
        flops=flops,
        latency=seconds_per_image,
        seconds=dict(seconds),
        versions=versions(),
        one_backbone=not len(classifier.extras),
        notes=tuple(_write_notes(opened, tasks, memory, out)),
        reproduce_command=request.build_command(out),
    )


def explain_settings(
    config: TrainingConfig, default: TrainingConfig, reasons: Mapping[str, str]
) -> tuple[tuple[str, str, str], ...]:
    """Explain why each setting has its value.

    Args:
        config: Training settings.
        default: The settings that apply where nothing is set.
        reasons: Reasons by name, where neither the user nor the default decided.

    Returns:
        (name, value, reason) of each setting.
    """
    return tuple(
        (name, str(value), reasons.get(name, "default" if value == getattr(default, name) else "set explicitly"))
        for name, value in asdict(config).items()
    )


def build_lineage_entry(record: Record) -> dict[str, Any]:
    """Build the entry of a run in its child's lineage: what was extended, how, with which results.

    Args:
        record: The run's record.

    Returns:
        Plain values. The parent's own lineage is left out: its entries precede this one.
    """
    return {
        "parent": {name: value for name, value in record.parent.items() if name != "lineage"},
        "method": record.method,
        "task": record.tasks[-1].name,
        "accuracy": {task.name: task.child.mean for task in record.tasks if task.child},
    }


def _describe_parent(opened: Opened) -> dict[str, Any]:
    parent, request = opened.parent, opened.request
    described = {
        "source": parent.source,
        "digest": parent.digest,
        "architecture": parent.arch,
        "tasks": [task.name for task in opened.old_tasks],
    }
    if isinstance(request, Request):
        described |= {
            "source": escape_surrogates(request.parent),
            "preprocessing": parent.preprocessing.to_text(),
            "lineage": list(parent.lineage),
            **({"files": digests.compute(parent.folder)} if parent.folder else {}),
            **({"labels": digest(request.labels)} if request.labels else {}),
        }
    return described


def _find_reasons(fitted: Fitted, config: TrainingConfig, out: Path) -> dict[str, str]:
    """Why settings are what they are, where neither the user nor the default decided."""
    reasons = {"precision": run_folder.read_resolved(out)["reason"]}
    if fitted.config.micro_batches > config.micro_batches:
        reasons["micro_batches"] = "out of memory with fewer"
    return reasons


def _write_notes(opened: Opened, tasks: Sequence[TaskResult], memory: Memory, out: Path) -> list[str]:
    """What a reader must know before believing the numbers."""
    images = opened.images
    notes = [f"{name}: {note}" for name, part in images.described.items() for note in part["notes"]]
    notes += [
        f"{task.name} reaches {task.test.mean:.1%} (95 % interval {task.test.low:.1%} to {task.test.high:.1%}) on "
        f"{task.test.n} test images, which were used once and not for selection"
        for task in tasks
        if task.test
    ]
    notes += [
        f"the parent is near chance on {task.name}: check the preprocessing and the order of its class names"
        for task in tasks
        if task.parent and task.parent.mean < 2 / len(task.classes)
    ]
    if opened.old_tasks:
        notes += composition.notes(opened.plan, memory, opened.parent.memory, has_old=images.old is not None)
    if not all(task.child for task in tasks):
        notes.append(
            "not every old task has validation images: old accuracy is unknown, the last step was kept, and agreement "
            "with the parent is a proxy"
        )
    changes = run_folder.read_environment_changes(out)
    if changes:
        notes.append(f"resumed in another environment ({'; '.join(changes)}): the last bits of results may differ")
    return notes
