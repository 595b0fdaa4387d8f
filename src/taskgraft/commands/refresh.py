"""`taskgraft refresh`: a task of a finished model learns new images of its classes, such as another camera's."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from taskgraft.config import REFRESH_DEFAULTS, TrainingConfig
from taskgraft.methods.protocol import MethodLike
from taskgraft.pipeline.request import RefreshRequest
from taskgraft.pipeline.run import Extension, run
from taskgraft.types import Callbacks, PathLike, as_path


def refresh(
    model: PathLike,
    data: PathLike,
    out: PathLike,
    *,
    task: str = "",
    old_val: PathLike | Iterable[PathLike] = (),
    unlabeled: PathLike | Iterable[PathLike] = (),
    method: MethodLike = "",
    config: TrainingConfig = REFRESH_DEFAULTS,
    arch: str | None = None,
    labels: PathLike | None = None,
    preprocessing: str | None = None,
    parent_task: str | None = None,
    check_parent: bool = True,
    cache: PathLike | None = None,
    resume: bool = False,
    command: str = "taskgraft.refresh(…)",
    callbacks: Callbacks = Callbacks(),  # noqa: B008 - immutable
) -> Extension:
    """Teach a task new images of classes that it has, such as another camera's or another season's, without old images.

    The model learns the labels while it is held to its old answers. With old validation images it then goes part of
    the way back, as far as is best for old and new ones together (WiSE-FT, Wortsman et al. 2022).
    Where the task has a side network of its own, nothing else is trained.

    Args:
        model: The finished model.
        data: Labeled new images of one of its tasks; all their classes must be the task's.
        out: Run folder and bundle to write; a finished run of the same request is read, not repeated.
        task: The task; empty = the one whose classes the images have.
        old_val: Validation images of the old kind, one folder for each task that has any.
        unlabeled: Images without labels, half of every batch, for methods with a teacher: folders, files or archives.
        method: Method in its notation; empty = the default.
        config: Training settings.
        arch: timm name of the model's architecture, for a file that does not name it.
        labels: File with the model's class names, for a file that does not have them.
        preprocessing: The model's preprocessing, where it differs from what the model says.
        parent_task: Name for the task of a model without task names; None = that of its file.
        check_parent: Whether to stop if the model does no better than guessing on `old_val`.
        cache: Folder of decoded pixels; None = in memory only.
        resume: Whether to continue a run that was interrupted.
        command: The command that was typed, for the record.
        callbacks: Progress callbacks.

    Returns:
        The finished run, with results for the old kind of image and for the new one.

    Raises:
        TaskgraftError: Bad input, before anything is written; or training failed.
    """
    request = RefreshRequest(
        model, data, task, method, config, old_val=old_val, unlabeled=unlabeled, arch=arch, labels=labels,
        preprocessing=preprocessing, parent_task=parent_task, check_parent=check_parent,
    )  # fmt: skip
    return run(request, Path(out), cache=as_path(cache), resume=resume, command=command, callbacks=callbacks)
