"""`taskgraft train`: a classifier of one task, trained on its own images: the parent of later extensions."""

from __future__ import annotations

import os
from pathlib import Path

from taskgraft.config import TRAIN_DEFAULTS, TrainingConfig
from taskgraft.pipeline.request import TrainingRequest
from taskgraft.pipeline.run import Extension, run
from taskgraft.types import Callbacks, PathLike, as_path


def train(
    data: PathLike,
    out: PathLike,
    *,
    task: str = "label",
    model: str | None = None,
    weights: PathLike | None = None,
    preprocessing: str | None = None,
    config: TrainingConfig = TRAIN_DEFAULTS,
    keep: str = "",
    cache: PathLike | None = None,
    resume: bool = False,
    command: str = "taskgraft.train",
    callbacks: Callbacks = Callbacks(),  # noqa: B008 - immutable
) -> Extension:
    """Train a classifier of one task.

    Args:
        data: Images of the task.
        out: Run folder and bundle to write; a finished run of the same arguments is read, not repeated.
        task: Name of the task.
        model: timm name of the architecture (default resnet18), or of that of `weights` if the file does not say.
        weights: Model whose backbone training starts from; None = random weights.
        preprocessing: How images are shown, such as "64 squash bilinear half"; None = timm's default for the model.
        config: Training settings.
        keep: Methods in their notation whose memory the bundle stores for its first extension.
        cache: Folder of decoded pixels; None = in memory only.
        resume: Whether to continue a run that was interrupted.
        command: The command that was typed, for the record.
        callbacks: Progress callbacks.

    Returns:
        The finished run.

    Raises:
        TaskgraftError: Bad input, before anything is written; or training failed.
    """
    start = os.fspath(weights) if weights is not None else None
    request = TrainingRequest(Path(data), task, model, start, preprocessing, config, keep)
    return run(request, Path(out), cache=as_path(cache), resume=resume, command=command, callbacks=callbacks)
