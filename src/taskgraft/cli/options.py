"""The flags that several commands share, each written once; those of `Run` are made from its declaration."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from taskgraft.settings import Run, options

Method = Annotated[
    str,
    typer.Option(
        "--method", rich_help_panel="Method", help="a method or a sum of methods, as `taskgraft methods` lists them"
    ),
]
Old = Annotated[
    Path | None,
    typer.Option("--old", rich_help_panel="Data", help="a sample of old training pictures, for methods that use one"),
]
OldVal = Annotated[
    list[Path] | None,
    typer.Option(
        "--old-val",
        rich_help_panel="Data",
        help="old validation pictures, to measure forgetting; once for each old task",
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
        "--input", rich_help_panel="Parent",
        help="preprocessing of the parent, such as '96 squash bilinear imagenet' [default: what the parent says]",
    ),
]  # fmt: skip
ParentTask = Annotated[
    str,
    typer.Option(
        "--parent-task", rich_help_panel="Parent", help="name for the task of a parent that comes without names"
    ),
]
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

HIDDEN = ("log_every",)
PANELS = {"precision": "Hardware", "seed": "Training", "softmax": "Method", "norm": "Method"}


def with_run(base: Run) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command a flag for every field of Run; it is called with `run`, that is `base` with what was given."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "run"]
        flags = [_flag(name, option, getattr(base, name)) for name, option in options(Run).items()]

        @functools.wraps(command)
        def wrapper(**given: Any) -> None:
            changes = {name: given.pop(name) for name in options(Run)}
            command(**given, run=replace(base, **{name: value for name, value in changes.items() if value is not None}))

        signature = inspect.Signature([*own, *flags])
        wrapper.__signature__ = signature  # pyright: ignore[reportAttributeAccessIssue]
        wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in signature.parameters.values()}
        return wrapper

    return decorate


def cache_folder(text: str) -> Path | None:
    """Where decoded pixels are kept: a folder, or None for memory."""
    if text == "none":
        return None
    if text:
        return Path(text)
    import platformdirs

    return platformdirs.user_cache_path("taskgraft")


def _flag(name: str, option: Any, default: Any) -> inspect.Parameter:
    kind = option.kind
    meaning = option.meaning
    if get_origin(kind) is Literal:
        meaning, kind = f"{meaning}: {' | '.join(get_args(kind))}", str
    info = typer.Option(
        "--" + name.replace("_", "-"),
        help=f"{meaning} [default: {default}]",
        rich_help_panel=PANELS.get(name, "Training"),
        hidden=name in HIDDEN,
        metavar=None,
    )
    annotation = Annotated[kind | None, info]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
