"""What a finished run leaves in its folder: the record, the predictions, the bundle and the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from taskgraft import report
from taskgraft.bundle import Bundle, digests, write_bundle
from taskgraft.config import TrainingConfig
from taskgraft.data.task_images import TaskData
from taskgraft.errors import ResultError
from taskgraft.methods import composition
from taskgraft.models.classifier import Classifier
from taskgraft.models.inference import count_flops, measure_latency
from taskgraft.pipeline import measuring
from taskgraft.pipeline.opening import Opened
from taskgraft.pipeline.request import MergeRequest, Request
from taskgraft.results.files import digest, escape_surrogates, write_text
from taskgraft.results.predictions import Predictions, save_predictions
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
    """Build the record of a run: settings and reasons, results, costs, and what to know before believing them.

    Args:
        opened: The request.
        fitted: The training.
        classifier: The finished child.
        memory: What each method stores.
        sets: Predictions by set, as of `measuring.compute_task_results`.
        out: The run folder.
        command: The command that was typed.
        seconds: Seconds of each stage of the run.

    Returns:
        The record; flops and latency only of an extension.
    """
    request, parent, config = opened.request, opened.parent, fitted.config
    tasks = measuring.compute_task_results(sets, request.task, refreshed=opened.is_refresh)
    accuracies = [task.child.mean for task in tasks if task.child]
    size = sum(value.numel() for value in classifier.parameters())
    old_size, flops, latency, parent_history = 0, {}, {}, []
    if opened.has_parent:
        old_size = sum(value.numel() for value in parent.classifier.parameters())
        models, images = {"child": classifier, "parent": parent.classifier}, opened.images.new.val
        assert images is not None
        flops = {name: count_flops(model, images) for name, model in models.items()}
        latency = measure_latency(models, images)
        parent_history = run_folder.read_metrics(parent.folder) if parent.folder else []
    run = run_folder.read(out)
    reasons = {"precision": run["resolved"]["reason"]}
    if compiled := run["resolved"].get("compile_reason"):
        reasons["compile"] = compiled
    if opened.describe_epochs():
        reasons["steps"] = opened.describe_epochs()
    if config.micro_batches > request.config.micro_batches:
        reasons["micro_batches"] = "out of memory with fewer"
    return Record(
        command=command,
        seed=config.seed,
        method=opened.method,
        config=asdict(config),
        parent=_describe_parent(opened),
        data=opened.images.described,
        settings=explain_settings(config, opened.request.default_config, reasons),
        tasks=tasks,
        score=sum(accuracies) / len(accuracies) if len(accuracies) == len(tasks) else None,
        step=fitted.step,
        history=fitted.history,
        parent_history=tuple(parent_history),
        parameters={"child": size, "parent": old_size, "added": size - old_size},
        flops=flops,
        latency=latency,
        seconds=dict(seconds),
        versions=versions(),
        baselines=opened.baselines,
        architecture=(opened.student or parent).arch,
        one_backbone=not len(classifier.extras),
        notes=tuple(_write_notes(opened, fitted, tasks, memory, run.get("environment_changes", []))),
        reproduce_command=request.build_command(out),
    )


def explain_settings(
    config: TrainingConfig, default: TrainingConfig, reasons: Mapping[str, str]
) -> tuple[tuple[str, str, str], ...]:
    """Return (name, value, reason) of each setting; `reasons` has those that neither the user nor a default set."""
    return tuple(
        (name, str(value), reasons.get(name, "default" if value == getattr(default, name) else "set explicitly"))
        for name, value in asdict(config).items()
    )


def build_lineage_entry(record: Record) -> dict[str, Any]:
    """Return the entry of a run in its child's lineage, without the parent's own lineage, whose entries precede it."""
    return {
        "parent": {name: value for name, value in record.parent.items() if name != "lineage"},
        "method": record.method,
        "task": report.learned_name(record),
        "accuracy": {task.name: task.child.mean for task in record.tasks if task.child},
    }


def write_run(out: Path, bundle: Bundle, record: Record, sets: Mapping[str, Predictions]) -> None:
    """Write everything but the report."""
    save_predictions(out / "predictions.npz", sets)
    write_text(out / "record.json", record.model_dump_json(indent=1))
    write_text(out / "README.md", report.format_model_card(record))
    write_bundle(out, bundle, method=record.method, parent=record.parent)
    digests.write(out, _list_input_digests(record))


def write_report(out: Path, record: Record, sets: Mapping[str, Predictions], images: TaskData) -> None:
    """Write the report of a finished run.

    Raises:
        ResultError: The report cannot be written; the model is complete.
    """
    try:
        thumbnails = report.ThumbnailMaker({"new": images.new.val, "old": images.old_val})
        page = report.render_run(record, sets, thumbnails)
        thumbnails.save(out)
        write_text(out / "report.html", page)
    except Exception as error:  # whatever it is, the model is complete
        reason = (str(error).splitlines() or [""])[0][:160]
        raise ResultError(
            f"the model in {out} is complete, but its report could not be written ({type(error).__name__}: {reason}); "
            "rerun the command to write it (train and extend with --resume)"
        ) from error


def _describe_parent(opened: Opened) -> dict[str, Any]:
    parent, request = opened.parent, opened.request
    description = {
        "source": parent.source,
        "digest": parent.digest,
        "architecture": parent.arch,
        "tasks": [task.name for task in parent.classifier.tasks] if opened.has_parent else [],
    }
    if isinstance(request, Request):
        description |= {
            "source": escape_surrogates(request.parent_name),
            "preprocessing": parent.preprocessing.to_text(),
            "lineage": list(parent.lineage),
            **({"other": escape_surrogates(request.other)} if isinstance(request, MergeRequest) else {}),
            **({"files": digests.compute(parent.folder)} if parent.folder else {}),
            **({"labels": digest(request.labels)} if request.labels else {}),
        }
    return description


def _write_notes(
    opened: Opened,
    fitted: Fitted,
    tasks: Sequence[TaskResult],
    memory: Memory,
    environment_changes: Sequence[str],
) -> list[str]:
    """Return what a reader must know before believing the numbers."""
    images = opened.images
    notes = [*opened.notes, *([fitted.stopped_early] if fitted.stopped_early else [])]
    notes += [f"{name}: {note}" for name, description in images.described.items() for note in description["notes"]]
    notes += [
        f"{task.name} reaches {task.test.mean:.1%} (95 % interval {task.test.low:.1%} to {task.test.high:.1%}) on "
        f"{task.test.n} test images, which were used once and not for selection"
        for task in tasks
        if task.test
    ]
    if opened.is_refresh:
        notes += [
            f"{task.name}: {task.negative_flips.mean:.1%} of {task.negative_flips.n} images were right before and are "
            "wrong now (negative flips)"
            for task in tasks
            if task.negative_flips
        ]
    notes += [f"{task.name}: {balance}" for task in tasks if (balance := report.describe_balance(task))]
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
    if next(opened.child.parameters()).device.type == "cuda" and not opened.request.config.deterministic:
        notes.append("trained on a GPU without --deterministic: another run of the same command may differ in bits")
    if environment_changes:
        changes = "; ".join(environment_changes)
        notes.append(f"resumed in another environment ({changes}): the last bits of results may differ")
    return notes


def _list_input_digests(record: Record) -> dict[str, str]:
    """Return the SHA-256, by name, of everything that a run was made from."""
    parent = record.parent
    inputs = {"parent": str(parent["digest"])}
    inputs |= {f"parent/{name}": digest for name, digest in parent.get("files", {}).items()}
    inputs |= {"labels": parent["labels"]} if "labels" in parent else {}
    return inputs | {f"images/{name}": str(data["fingerprint"]) for name, data in record.data.items()}
