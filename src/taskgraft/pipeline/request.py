"""What a run is asked to do: everything that decides its result, checked before anything is opened."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from taskgraft.config import TRAIN_DEFAULTS, TrainingConfig, validate
from taskgraft.errors import InputError
from taskgraft.methods import composition, notation
from taskgraft.methods.presets import DEFAULT_METHOD
from taskgraft.methods.protocol import Plan
from taskgraft.report import commands
from taskgraft.types import PathLike, as_path, as_paths

TASK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _-]{0,63}")  # it becomes a file name


@dataclass(init=False, frozen=True)  # hashable: a search caches what it opens by request
class Request:
    """An extension of a trained classifier. Equal requests on equal data give equal children.

    Attributes:
        parent: Bundle, file of weights, timm folder or timm name.
        data: Images of the new task.
        task: Name of the task to learn.
        method: Method in its notation.
        config: Training settings.
        old: Sample of old training images, for methods that use one.
        old_val: Old validation images, one folder for each old task that has any.
        arch: timm name of the parent's architecture, for a file that does not name it.
        labels: File with the parent's class names, for a file that does not have them.
        preprocessing: The parent's preprocessing, where it differs from what the model says.
        parent_task: Name for the task of a model without task names.
        into: Whether `task` is an old task, and `data` has more classes of it.
        check_parent: Whether to stop if the parent does no better than guessing on its own validation images.
    """

    parent: str
    data: Path
    task: str
    method: str
    config: TrainingConfig
    old: Path | None
    old_val: tuple[Path, ...]
    arch: str | None
    labels: Path | None
    preprocessing: str | None
    parent_task: str
    into: bool
    check_parent: bool

    def __init__(
        self,
        parent: PathLike,
        data: PathLike,
        task: str,
        method: str = DEFAULT_METHOD,
        config: TrainingConfig = TrainingConfig(),  # noqa: B008 - immutable
        old: PathLike | None = None,
        old_val: PathLike | Iterable[PathLike] = (),
        arch: str | None = None,
        labels: PathLike | None = None,
        preprocessing: str | None = None,
        parent_task: str = "parent",
        into: bool = False,
        check_parent: bool = True,
    ) -> None:
        """Convert paths; `old_val` is one path or several. See the class for the arguments."""
        self.__dict__.update(  # a frozen dataclass refuses assignment
            parent=os.fspath(parent), data=Path(data), task=task, method=method, config=config, old=as_path(old),
            old_val=as_paths(old_val), arch=arch, labels=as_path(labels), preprocessing=preprocessing,
            parent_task=parent_task, into=into, check_parent=check_parent,
        )  # fmt: skip

    def list_sources(self) -> tuple[Path, ...]:
        """Return the files and folders that images are read from."""
        return (self.data, *([self.old] if self.old else []), *self.old_val)

    def build_command(self, out: Path) -> str:
        """Return the `taskgraft extend` command that reproduces this request in `out`; defaults are left out."""
        values = [
            ("--into" if self.into else "--task", self.task),
            ("--method", self.method),
            ("--old", self.old),
            *(("--old-val", path) for path in self.old_val),
            ("--arch", self.arch),
            ("--labels", self.labels),
            ("--preprocessing", self.preprocessing),
            ("--parent-task", self.parent_task if self.parent_task != "parent" else None),
        ]
        flags: list[commands.Flag] = [(flag, str(value)) for flag, value in values if value]
        flags += commands.config_flags(asdict(self.config))
        flags += [] if self.check_parent else [("--no-parent-check", None)]
        return str(commands.Command("extend", (self.parent, str(self.data), str(out)), tuple(flags)))


@dataclass(frozen=True)
class TrainingRequest:
    """A training of a first task: an extension without a parent.

    Attributes:
        data: Images of the task.
        task: Name of the task.
        model: timm name of the architecture, or of that of `weights`.
        weights: Model whose backbone training starts from; None = random weights.
        preprocessing: Preprocessing, where it differs from what the model says.
        config: Training settings.
        keep: Methods in their notation whose memory is stored for the first extension.
    """

    data: Path
    task: str
    model: str | None = None
    weights: str | None = None
    preprocessing: str | None = None
    config: TrainingConfig = TRAIN_DEFAULTS
    keep: str = ""

    def list_sources(self) -> tuple[Path, ...]:
        """Return the files and folders that images are read from."""
        return (self.data,)

    def build_command(self, out: Path) -> str:
        """Return the `taskgraft train` command that reproduces this request in `out`."""
        values = [
            ("--task", self.task),
            ("--model", self.model),
            ("--weights", self.weights),
            ("--preprocessing", self.preprocessing),
            ("--keep", self.keep),
        ]
        flags: list[commands.Flag] = [(flag, value) for flag, value in values if value]
        flags += commands.config_flags(asdict(self.config), TRAIN_DEFAULTS)
        return str(commands.Command("train", (str(self.data), str(out)), tuple(flags)))


def validate_request(request: Request) -> tuple[Request, Plan]:
    """Check the values of a request.

    Returns:
        The request with its method in the standard notation, and the settings of each method by name.

    Raises:
        InputError: A value is not allowed.
    """
    plan = notation.parse(request.method)
    reason = composition.requires(plan, request.config)
    if reason:
        raise InputError(reason)
    for name in (request.task, request.parent_task):
        if not TASK_NAME.fullmatch(name):
            raise InputError(
                f"task name {name!r} is not allowed: use up to 64 letters, digits, spaces, - and _, beginning with a "
                "letter or digit"
            )
    return replace(request, method=notation.show(plan), config=validate(request.config)), plan
