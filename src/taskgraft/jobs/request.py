"""What an extension is asked for: all that decides a run, checked before anything is opened."""

from __future__ import annotations

import re
import shlex
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from taskgraft import methods
from taskgraft.methods import Plan
from taskgraft.problem import Problem
from taskgraft.settings import METHOD, Run, validate

TASK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _-]{0,63}")  # it becomes a file name


@dataclass(frozen=True)
class Request:
    """Everything that decides a run; equal requests on equal data give equal children."""

    parent: str
    data: Path
    task: str
    method: str = METHOD
    run: Run = field(default_factory=Run)
    old: Path | None = None  # a sample of old images, for the methods that use one
    old_val: tuple[Path, ...] = ()  # old validation images, a folder for each old task that has any
    arch: str | None = None
    labels: Path | None = None
    wanted: str | None = None  # the preprocessing line
    parent_task: str = "parent"  # what to call the task of a model that comes without names
    into: bool = False  # `task` is an old one, and DATA shows further classes of it

    def sources(self) -> tuple[Path, ...]:
        """Where pictures are read from."""
        return (self.data, *([self.old] if self.old else []), *self.old_val)


def checked(request: Request) -> tuple[Request, Plan]:
    """The request with its method written the one way, and the method's settings; raises Problem for bad values."""
    plan = methods.parse(request.method)
    if "lwf" in plan and not request.run.warmup:
        raise Problem("lwf is warm-up, then joint training: give --warmup 1 or more, or use distill")
    for name in (request.task, request.parent_task):
        if not TASK_NAME.fullmatch(name):
            raise Problem(
                f"task name {name!r}: use letters, digits, spaces, - and _, at most 64, a letter or digit first"
            )
    return replace(request, method=methods.show(plan), run=validate(request.run)), plan


def command_line(request: Request, out: Path) -> str:
    """The `taskgraft extend` command that repeats a request, with every setting that is not a default."""
    words = ["taskgraft", "extend", request.parent, str(request.data), str(out)]
    words += ["--into" if request.into else "--task", request.task]
    words += ["--method", request.method]
    given = {
        "--old": [request.old],
        "--old-val": request.old_val,
        "--arch": [request.arch],
        "--labels": [request.labels],
        "--input": [request.wanted],
        "--parent-task": [request.parent_task if request.parent_task != "parent" else None],
    }
    words += [part for flag, values in given.items() for value in values if value for part in (flag, str(value))]
    default = asdict(Run())
    changed = {name: value for name, value in asdict(request.run).items() if value != default[name]}
    words += [part for name, value in changed.items() for part in ("--" + name.replace("_", "-"), str(value))]
    return shlex.join(words)
