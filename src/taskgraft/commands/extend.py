"""`taskgraft extend`: a trained classifier learns a new task, without the old data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path

from taskgraft.config import COMPRESSION_DEFAULTS, TrainingConfig
from taskgraft.errors import InputError
from taskgraft.methods import composition
from taskgraft.methods.protocol import MethodLike
from taskgraft.pipeline.request import CompressionRequest, DataLike, ParentLike, Request, validate_request
from taskgraft.pipeline.run import Extension, run
from taskgraft.types import Callbacks, PathLike, as_path


def extend(
    parent: ParentLike,
    data: DataLike,
    out: PathLike,
    *,
    task: str,
    method: MethodLike = "",
    config: TrainingConfig = TrainingConfig(),  # noqa: B008 - immutable
    unlabeled: PathLike | Iterable[PathLike] = (),
    old: DataLike | None = None,
    old_val: DataLike | Iterable[DataLike] = (),
    arch: str | None = None,
    labels: PathLike | None = None,
    preprocessing: str | None = None,
    parent_task: str | None = None,
    into: bool = False,
    check_parent: bool = True,
    one_backbone: bool = False,
    cache: PathLike | None = None,
    resume: bool = False,
    command: str = "taskgraft.extend(…)",
    callbacks: Callbacks = Callbacks(),  # noqa: B008 - immutable
) -> Extension:
    """Extend a trained classifier with a new task.

    Args:
        parent: Bundle, file of weights, timm folder or timm name; a Bundle in memory, a run, or a timm network that
            `wrap` made a Classifier of. What is in memory is not changed.
        data: Images of the new task: a folder, table or archive; a torchvision or other Dataset of (image, class); a
            Dataset or DatasetDict of Hugging Face; a DataLoader; a pair (images, labels); or a dictionary of those by
            split. Images are paths, Pillow images or 8-bit pixels; the model's preprocessing is applied to them.
        out: Run folder and bundle to write; a finished run of the same request is read, not repeated.
        task: Name of the task to learn.
        method: Method in its notation, such as "distill + wise", or as objects of `taskgraft.methods`; empty = the
            default, which differs with `into`.
        config: Training settings.
        unlabeled: Images without labels, half of every batch, for methods with a teacher: folders, files or archives.
        old: Sample of old training images, for the methods that use one; as `data`.
        old_val: Old validation images, as `data`; a list where several old tasks have some.
        arch: timm name of the parent's architecture, for a file that does not say.
        labels: File with the parent's class names, for a file that does not have them.
        preprocessing: The parent's preprocessing, where it differs from what the model says.
        parent_task: Name for the task of a model without task names; None = that of its file.
        into: Whether `task` is an old task, and `data` shows more classes of it.
        check_parent: Whether to stop if the parent does no better than guessing on its own validation images.
        one_backbone: Whether to compress the child to one plain backbone; the child itself is then in OUT/teacher.
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
    carry_out = run_on_one_backbone if one_backbone else run
    return carry_out(request, Path(out), cache=as_path(cache), resume=resume, command=command, callbacks=callbacks)


def run_on_one_backbone(
    request: Request,
    out: Path,
    *,
    cache: Path | None = None,
    resume: bool = False,
    command: str = "",
    callbacks: Callbacks = Callbacks(),  # noqa: B008 - immutable
) -> Extension:
    """Carry out an extension in OUT/teacher, and compress the child into OUT.

    Args:
        request: An extension by a method that adds a side network. Settings that differ from its defaults also apply
            to the compression.
        out: The run folder of the plain child.
        cache: Folder of decoded pixels and features; None = in memory only.
        resume: Whether to continue a run that was interrupted.
        command: The command that was typed, for the record.
        callbacks: Progress callbacks.

    Raises:
        TaskgraftError: As `run`; or the method keeps one backbone anyway.
    """
    first, last = plan_one_backbone(request, str(out / "teacher"))
    teacher = run(first, out / "teacher", cache=cache, resume=resume, command=command, callbacks=callbacks)
    callbacks.info(f"the child in {teacher.out} teaches one plain backbone")
    return run(last, out, cache=cache, resume=resume, command=command, callbacks=callbacks)


def plan_one_backbone(request: Request, teacher: ParentLike) -> tuple[Request, CompressionRequest]:
    """Divide an extension on one backbone into its two runs.

    Args:
        request: An extension by a method that adds a side network.
        teacher: The child of the first run.

    Returns:
        The extension, and the compression of its child.

    Raises:
        InputError: The method keeps one backbone anyway, or a setting is not allowed.
    """
    named, plan = validate_request(request)
    if not any(settings.traits.attaches for settings in plan.values()):
        raise InputError(f"--one-backbone: {named.method} adds no side network, its child is plain; leave it out")
    changed = {
        name: value for name, value in asdict(request.config).items() if value != getattr(TrainingConfig(), name)
    }
    return request if composition.has_teacher(plan) else replace(request, unlabeled=()), CompressionRequest(
        teacher, request.data, old_val=request.old_val, unlabeled=request.unlabeled,
        check_parent=request.check_parent, config=replace(COMPRESSION_DEFAULTS, **changed),
    )  # fmt: skip
