"""`taskgraft compress`: a finished model teaches one plain network all its tasks."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from taskgraft.config import COMPRESSION_DEFAULTS, TrainingConfig
from taskgraft.methods.presets import COMPRESSION
from taskgraft.methods.protocol import MethodLike
from taskgraft.pipeline.request import CompressionRequest
from taskgraft.pipeline.run import Extension, run
from taskgraft.types import Callbacks, PathLike, as_path


def compress(
    model: PathLike,
    data: PathLike,
    out: PathLike,
    *,
    unlabeled: PathLike | Iterable[PathLike] = (),
    student: str | None = None,
    method: MethodLike = COMPRESSION,
    config: TrainingConfig = COMPRESSION_DEFAULTS,
    old_val: PathLike | Iterable[PathLike] = (),
    arch: str | None = None,
    labels: PathLike | None = None,
    preprocessing: str | None = None,
    check_parent: bool = True,
    cache: PathLike | None = None,
    resume: bool = False,
    command: str = "taskgraft.compress(…)",
    callbacks: Callbacks = Callbacks(),  # noqa: B008 - immutable
) -> Extension:
    """Teach one plain network everything that a finished model does.

    The model answers every image on the very view that the student sees (patient teachers, Beyer et al. 2022; deep
    model consolidation, Zhang et al. 2020). The student has one backbone and one head for each task, and plain timm
    loads it.

    Args:
        model: The finished model: a child with side networks, or any other model.
        data: Labeled images of one of its tasks, usually the newest.
        out: Run folder and bundle to write; a finished run of the same request is read, not repeated.
        unlabeled: Images without labels, half of every batch: folders, files or archives.
        student: timm name of another architecture, with random weights, or a model whose backbone is taken: a timm
            folder, a file of weights, a bundle or `hf-hub:NAME`; None = the model's own backbone.
        method: Method in its notation; it must have a teacher.
        config: Training settings.
        old_val: Validation images of the other tasks, one folder for each that has any.
        arch: timm name of the model's architecture, for a file that does not name it.
        labels: File with the model's class names, for a file that does not have them.
        preprocessing: The model's preprocessing, where it differs from what the model says.
        check_parent: Whether to stop if the model does no better than guessing on its own validation images.
        cache: Folder of decoded pixels and features; None = in memory only.
        resume: Whether to continue a run that was interrupted.
        command: The command that was typed, for the record.
        callbacks: Progress callbacks.

    Returns:
        The finished run.

    Raises:
        TaskgraftError: Bad input, before anything is written; or training failed.
    """
    request = CompressionRequest(
        model, data, method=method, config=config, student=student, old_val=old_val, arch=arch, labels=labels,
        preprocessing=preprocessing, check_parent=check_parent, unlabeled=unlabeled,
    )  # fmt: skip
    return run(request, Path(out), cache=as_path(cache), resume=resume, command=command, callbacks=callbacks)
