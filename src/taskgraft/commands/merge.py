"""`taskgraft merge`: two finished models teach one plain network the tasks of both, without a label."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from taskgraft.config import COMPRESSION_DEFAULTS, TrainingConfig
from taskgraft.methods.presets import COMPRESSION
from taskgraft.methods.protocol import MethodLike
from taskgraft.pipeline.request import MergeRequest
from taskgraft.pipeline.run import Extension, run
from taskgraft.types import Callbacks, PathLike, as_path


def merge(
    model: PathLike,
    other: PathLike,
    out: PathLike,
    *,
    images: PathLike | Iterable[PathLike],
    val: PathLike | Iterable[PathLike] = (),
    student: str | None = None,
    ancestor: PathLike | None = None,
    arch: str | None = None,
    labels: PathLike | None = None,
    preprocessing: str | None = None,
    method: MethodLike = COMPRESSION,
    config: TrainingConfig = COMPRESSION_DEFAULTS,
    check_parent: bool = True,
    cache: PathLike | None = None,
    resume: bool = False,
    command: str = "taskgraft.merge(…)",
    callbacks: Callbacks = Callbacks(),  # noqa: B008 - immutable
) -> Extension:
    """Teach one plain network the tasks of two finished models, on images without labels.

    Both models answer every image on the very view that the student sees (deep model consolidation, Zhang et al. 2020).
    Where both have the same layers, the record also has what merging their weights alone gives.

    Args:
        model: The first model, which the student starts from and whose preprocessing it gets.
        other: The second model; its architecture may differ.
        out: Run folder and bundle to write; a finished run of the same request is read, not repeated.
        images: Images such as both models were trained on, without labels: folders, files or archives.
        val: Labeled images of some of the tasks, one folder for each, to measure accuracy.
        student: timm name of another architecture, with random weights, or a model whose backbone is taken; None = the
            first model's.
        ancestor: The model that both were trained from, for baselines that need it.
        arch: timm name of the first model's architecture, for a file that does not name it.
        labels: File with the first model's class names, for a file that does not have them.
        preprocessing: The first model's preprocessing, where it differs from what the model says.
        method: Method in its notation; it must have a teacher.
        config: Training settings.
        check_parent: Whether to stop if the models do no better than guessing on `val`.
        cache: Folder of decoded pixels and features; None = in memory only.
        resume: Whether to continue a run that was interrupted.
        command: The command that was typed, for the record.
        callbacks: Progress callbacks.

    Returns:
        The finished run.

    Raises:
        TaskgraftError: Bad input, before anything is written; or training failed.
    """
    request = MergeRequest(
        model, other, images, method=method, config=config, student=student, ancestor=ancestor, old_val=val,
        arch=arch, labels=labels, preprocessing=preprocessing, check_parent=check_parent,
    )  # fmt: skip
    request.require_paths("merge")
    return run(request, Path(out), cache=as_path(cache), resume=resume, command=command, callbacks=callbacks)
