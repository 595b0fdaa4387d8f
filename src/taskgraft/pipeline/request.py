"""What an extension is asked for: all that decides a run, checked before anything is opened."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from taskgraft.config import TrainingConfig, validate
from taskgraft.errors import InputError
from taskgraft.methods import composition, notation
from taskgraft.methods.presets import DEFAULT_METHOD
from taskgraft.methods.protocol import Plan
from taskgraft.report import commands
from taskgraft.types import PathLike, as_path, as_paths

TASK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _-]{0,63}")  # it becomes a file name


@dataclass(frozen=True, init=False)
class Request:
    """Everything that decides a run; equal requests on equal data give equal children.

    Paths may be given as strings; `old_val` is one path or several.
    """

    parent: str
    data: Path
    task: str
    method: str
    config: TrainingConfig
    old: Path | None  # a sample of old images, for the methods that use one
    old_val: tuple[Path, ...]  # old validation images, a folder for each old task that has any
    arch: str | None
    labels: Path | None
    preprocessing: str | None  # the preprocessing line
    parent_task: str  # what to call the task of a model that comes without names
    into: bool  # `task` is an old one, and DATA shows further classes of it
    check_parent: bool  # stop where the parent does no better than guessing on its own validation images

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
        given = {
            "parent": os.fspath(parent), "data": as_path(data), "task": task, "method": method, "config": config,
            "old": as_path(old), "old_val": as_paths(old_val), "arch": arch, "labels": as_path(labels),
            "preprocessing": preprocessing, "parent_task": parent_task, "into": into, "check_parent": check_parent,
        }  # fmt: skip
        for name, value in given.items():
            object.__setattr__(self, name, value)  # as a frozen dataclass does it

    def sources(self) -> tuple[Path, ...]:
        """Where images are read from."""
        return (self.data, *([self.old] if self.old else []), *self.old_val)


def checked(request: Request) -> tuple[Request, Plan]:
    """The request with its method written the one way, and the method's settings; raises TaskgraftError for bad values."""
    plan = notation.parse(request.method)
    reason = composition.requires(plan, request.config)
    if reason:
        raise InputError(reason)
    for name in (request.task, request.parent_task):
        if not TASK_NAME.fullmatch(name):
            raise InputError(
                f"task name {name!r}: use letters, digits, spaces, - and _, at most 64, a letter or digit first"
            )
    return replace(request, method=notation.show(plan), config=validate(request.config)), plan


def command_line(request: Request, out: Path) -> str:
    """The `taskgraft extend` command that repeats a request, with every setting that is not a default."""
    flags: list[tuple[str, str | None]] = [("--into" if request.into else "--task", request.task)]
    flags += [("--method", request.method)]
    given = {
        "--old": [request.old],
        "--old-val": request.old_val,
        "--arch": [request.arch],
        "--labels": [request.labels],
        "--preprocessing": [request.preprocessing],
        "--parent-task": [request.parent_task if request.parent_task != "parent" else None],
    }
    flags += [(flag, str(value)) for flag, values in given.items() for value in values if value]
    flags += commands.config_flags(asdict(request.config))
    flags += [] if request.check_parent else [("--no-parent-check", None)]
    return commands.Command("extend", (request.parent, str(request.data), str(out)), tuple(flags)).to_text()
