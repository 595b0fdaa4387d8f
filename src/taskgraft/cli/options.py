"""The flags that several commands share, each written once; those of `Run` are made from its declaration."""

from __future__ import annotations

import functools
import inspect
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from taskgraft.config import TrainingConfig, options

Method = Annotated[
    str,
    typer.Option(
        "--method", rich_help_panel="Method", help="a method or a sum of methods, as `taskgraft methods` lists them"
    ),
]
Old = Annotated[
    Path | None,
    typer.Option("--old", rich_help_panel="Data", help="a sample of old training images, for methods that use one"),
]
OldVal = Annotated[
    list[Path] | None,
    typer.Option(
        "--old-val",
        rich_help_panel="Data",
        help="old validation images, to measure forgetting; once for each old task",
    ),
]
TaskName = Annotated[str, typer.Option("--task", rich_help_panel="Data", help="name of the task that is learnt")]
NewTask = Annotated[str, typer.Option("--task", rich_help_panel="Data", help="name of the new task")]
Into = Annotated[
    str,
    typer.Option(
        "--into", rich_help_panel="Data", help="instead of --task: an old task, of which DATA shows more classes"
    ),
]
Arch = Annotated[
    str | None, typer.Option("--arch", rich_help_panel="Parent", help="timm architecture of a file of weights")
]
Labels = Annotated[
    Path | None,
    typer.Option(
        "--labels", rich_help_panel="Parent", help="class names of a file of weights, one a line, in index order"
    ),
]
Input = Annotated[
    str | None,
    typer.Option(
        "--preprocessing", rich_help_panel="Parent",
        help="preprocessing of the parent, such as '96 squash bilinear imagenet' [default: what the parent says]",
    ),
]  # fmt: skip
ParentTask = Annotated[
    str,
    typer.Option(
        "--parent-task", rich_help_panel="Parent", help="name for the task of a parent that comes without names"
    ),
]
NoParentCheck = Annotated[
    bool,
    typer.Option(
        "--no-parent-check", rich_help_panel="Parent",
        help="go on where the parent does no better than guessing on its own --old-val",
    ),
]  # fmt: skip
Cache = Annotated[
    str,
    typer.Option(
        "--cache",
        rich_help_panel="Hardware",
        help="folder for decoded pixels; 'none' = in memory [default: the user's cache]"
    ),
]  # fmt: skip
Resume = Annotated[
    bool, typer.Option("--resume", rich_help_panel="Output", help="go on with an interrupted run in OUT")
]

DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        rich_help_panel="Output",
        help="check everything, say what would be done and how long it takes, write nothing",
    ),
]
Track = Annotated[
    str,
    typer.Option("--track", rich_help_panel="Output", help="also tell a tracker: tensorboard | mlflow | wandb"),
]

Budget = Annotated[
    str, typer.Option("--budget", rich_help_panel="Method", help="of --method auto: stop after so long, such as 15m")
]
MaxForgetting = Annotated[
    str,
    typer.Option(
        "--max-forgetting", rich_help_panel="Method",
        help="of --method auto: take the best new task with at most so much forgotten, such as 1%",
    ),
]  # fmt: skip
Jobs = Annotated[
    int, typer.Option("--jobs", min=1, rich_help_panel="Hardware", help="of --method auto: worker processes")
]
HIDDEN = ("log_every",)
PANELS = {"precision": "Hardware", "seed": "Training", "softmax": "Method", "norm": "Method"}


def with_run(base: TrainingConfig) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command a flag for every field of Run; it is called with `run`, that is `base` with what was given."""
    return with_flags(base, "config", "Training")


def with_flags(base: Any, argument: str, panel: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command a flag for every field of a dataclass of settings, and call it with them as one argument."""
    known = options(type(base))

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != argument]
        flags = [_flag(name, option, getattr(base, name), panel) for name, option in known.items()]

        @functools.wraps(command)
        def wrapper(**given: Any) -> None:
            changes = {name: given.pop(name) for name in known}
            settings = replace(base, **{name: value for name, value in changes.items() if value is not None})
            command(**given, **{argument: settings})

        return signed(wrapper, [*own, *flags])

    return decorate


def signed(wrapper: Callable[..., None], parameters: Sequence[inspect.Parameter]) -> Callable[..., None]:
    """Let a wrapper be seen with these parameters, from which typer makes a command's arguments and flags."""
    wrapper.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapper


def kind_of(annotation: Any) -> Any:
    """The plain type of a flag: Annotated[float | None, …] -> float."""
    kind = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    parts = [part for part in get_args(kind) if part is not type(None)] if isinstance(kind, UnionType) else [kind]
    return parts[0]


def cache_folder(text: str) -> Path | None:
    """Where decoded pixels are kept: a folder, or None for memory."""
    if text == "none":
        return None
    if text:
        return Path(text)
    import platformdirs

    return platformdirs.user_cache_path("taskgraft")


def _flag(name: str, option: Any, default: Any, panel: str) -> inspect.Parameter:
    kind = option.kind
    meaning = option.help
    if get_origin(kind) is Literal:
        meaning, kind = f"{meaning}: {' | '.join(get_args(kind))}", str
    info = typer.Option(
        "--" + name.replace("_", "-"),
        help=f"{meaning} [default: {default}]",
        rich_help_panel=PANELS.get(name, panel),
        hidden=name in HIDDEN,
        metavar=None,
    )
    annotation = Annotated[kind | None, info]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def command_line() -> str:
    """The command as it was given, for the record."""
    from taskgraft.results.files import shown

    return shown("taskgraft " + shlex.join(sys.argv[1:]))
