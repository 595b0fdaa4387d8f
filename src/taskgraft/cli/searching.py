"""The command that searches."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from taskgraft.cli import console
from taskgraft.cli.config_file import with_config
from taskgraft.cli.options import (
    Arch,
    Cache,
    Input,
    Labels,
    NoParentCheck,
    Old,
    OldVal,
    ParentTask,
    TaskName,
    cache_folder,
    command_line,
    with_flags,
    with_run,
)
from taskgraft.config import TrainingConfig
from taskgraft.errors import require
from taskgraft.tuning.search_config import SearchConfig, WorkerConfig

EXAMPLE = (
    "Example: taskgraft tune demo-run/alice demo-run/data/paints search --task paint "
    "--old-val demo-run/data/makes --method 'distill(strength=[0.3, 1, 3])' --sampler grid"
)
OPEN = "a method or a sum; open values as strength=1..100 or strength=[1, 10]; nothing open = everything"


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    flagged = with_flags(SearchConfig(), "search_config", "Search")(
        with_flags(WorkerConfig(), "worker_config", "Hardware")(tune)
    )
    app.command(epilog=EXAMPLE)(with_config(with_run(TrainingConfig())(flagged)))


def tune(
    parent: Annotated[str, typer.Argument(help="a bundle, a file of weights, a timm folder or a timm name")],
    data: Annotated[Path, typer.Argument(help="images: folder per class, train/ and val/ above it, or a CSV table")],
    out: Annotated[Path, typer.Argument(help="folder of the search; the same command goes on in it")],
    config: TrainingConfig,
    search_config: SearchConfig,
    worker_config: WorkerConfig,
    task: TaskName,
    method: Annotated[str, typer.Option(rich_help_panel="Method", help=OPEN)] = "distill + wise",
    settings: Annotated[
        str, typer.Option("--space", help="settings of the run: 'lr=1e-4..1e-2'", rich_help_panel="Search")
    ] = "",
    old: Old = None,
    old_val: OldVal = None,
    arch: Arch = None,
    labels: Labels = None,
    preprocessing: Input = None,
    parent_task: ParentTask = "parent",
    no_parent_check: NoParentCheck = False,
    cache: Cache = "",
) -> None:
    """Search strengths, rates, temperature: a frontier of old and new accuracy, and three choices on it as bundles."""
    require("tune", "optuna", what="tune")
    with console.importing():
        from taskgraft import report
        from taskgraft.commands import tune as job
        from taskgraft.pipeline.request import Request
        from taskgraft.tuning import space

    searched = space.parse(method, settings, config)
    request = Request(
        parent, data, task, "finetune", config, old, old_val or (), arch, labels, preprocessing, parent_task,
        check_parent=not no_parent_check,
    )  # fmt: skip
    with console.watching() as callbacks:
        found = job.tune(
            request,
            searched,
            out,
            search_config=search_config,
            worker_config=worker_config,
            cache=cache_folder(cache),
            command=command_line(),
            callbacks=callbacks,
        )
    console.out([*report.summarize_search(found), f"search, frontier and report: {out}/report.html"])
