"""`taskgraft extend`: a trained classifier learns a new task, without the old data."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from taskgraft.config import TrainingConfig
from taskgraft.methods.presets import DEFAULT_METHOD
from taskgraft.pipeline.request import Request
from taskgraft.pipeline.run import Extension, run
from taskgraft.types import Callbacks, PathLike, as_path


def extend(
    parent: PathLike,
    data: PathLike,
    out: PathLike,
    *,
    task: str,
    method: str = DEFAULT_METHOD,
    config: TrainingConfig = TrainingConfig(),  # noqa: B008 - immutable
    unlabeled: PathLike | Iterable[PathLike] = (),
    old: PathLike | None = None,
    old_val: PathLike | Iterable[PathLike] = (),
    arch: str | None = None,
    labels: PathLike | None = None,
    preprocessing: str | None = None,
    parent_task: str = "parent",
    into: bool = False,
    check_parent: bool = True,
    cache: PathLike | None = None,
    resume: bool = False,
    command: str = "taskgraft.extend(…)",
    callbacks: Callbacks = Callbacks(),  # noqa: B008 - immutable
) -> Extension:
    """Extend a trained classifier with a new task.

    Args:
        parent: Bundle, file of weights, timm folder or timm name.
        data: Images of the new task.
        out: Run folder and bundle to write; a finished run of the same request is read, not repeated.
        task: Name of the task to learn.
        method: Method in its notation, such as "distill + wise".
        config: Training settings.
        unlabeled: Images without labels, half of every batch, for methods with a teacher: folders, files or archives.
        old: Sample of old training images, for the methods that use one.
        old_val: Old validation images, one folder for each old task that has any.
        arch: timm name of the parent's architecture, for a file that does not say.
        labels: File with the parent's class names, for a file that does not have them.
        preprocessing: The parent's preprocessing, where it differs from what the model says.
        parent_task: Name for the task of a model without task names.
        into: Whether `task` is an old task, and `data` shows more classes of it.
        check_parent: Whether to stop if the parent does no better than guessing on its own validation images.
        cache: Folder of decoded pixels and features; None = in memory only.
        resume: Whether to continue a run that was interrupted.
        command: The command that was typed, for the record.
        callbacks: Progress callbacks.

    Returns:
        The finished run.

    Raises:
        TaskgraftError: Bad input, before anything is written; or training failed.
    """
    request = Request(
        parent, data, task, method, config, old, old_val, arch, labels, preprocessing, parent_task, into, check_parent,
        unlabeled,
    )  # fmt: skip
    return run(request, Path(out), cache=as_path(cache), resume=resume, command=command, callbacks=callbacks)
