"""Commands that train: train, extend, compare, demo."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from taskgraft.cli import console
from taskgraft.cli.config_file import with_config
from taskgraft.cli.launch import with_processes
from taskgraft.cli.options import (
    Arch,
    Budget,
    Cache,
    DryRun,
    Input,
    Into,
    Jobs,
    Labels,
    MaxForgetting,
    Method,
    NewTask,
    NoParentCheck,
    Old,
    OldVal,
    ParentTask,
    Resume,
    TaskName,
    Track,
    cache_folder,
    command_line,
    with_run,
)  # fmt: skip
from taskgraft.config import TRAIN_DEFAULTS, TrainingConfig
from taskgraft.errors import InputError, require
from taskgraft.methods.presets import DEFAULT_METHOD

if TYPE_CHECKING:
    from taskgraft.pipeline.request import Request

Parent = Annotated[str, typer.Argument(help="a bundle, a file of weights, a timm folder or a timm name")]
Data = Annotated[Path, typer.Argument(help="images: folder per class, train/ and val/ above it, or a CSV table")]
Out = Annotated[Path, typer.Argument(help="run folder and bundle to write")]


# They run as they stand where `taskgraft demo` has been run; tests run them on less.
EXAMPLES = {
    "train": "Example: taskgraft train demo-run/data/makes makes --task make --preprocessing '64 squash bilinear half'",
    "extend": "Example: taskgraft extend demo-run/alice demo-run/data/paints both --task paint "
    "--old-val demo-run/data/makes",
    "compare": "Example: taskgraft compare demo-run/alice demo-run/data/paints table --task paint "
    "--old-val demo-run/data/makes --methods 'finetune; distill'",
    "demo": "Example: taskgraft demo demo-run",
}


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command(epilog=EXAMPLES["train"])(with_config(with_processes(with_run(TRAIN_DEFAULTS)(train))))
    app.command(epilog=EXAMPLES["extend"])(with_config(with_processes(with_run(TrainingConfig())(extend))))
    app.command(epilog=EXAMPLES["compare"])(with_config(with_run(TrainingConfig())(compare)))
    app.command(epilog=EXAMPLES["demo"])(demo)


def train(
    data: Data,
    out: Out,
    config: TrainingConfig,
    task: TaskName = "label",
    model: Annotated[
        str | None,
        typer.Option("--model", "--arch", help="timm architecture [default: resnet18]", rich_help_panel="Parent"),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="start from the backbone of this model; --model for a file that does not name its architecture",
            rich_help_panel="Parent",
        ),
    ] = None,
    preprocessing: Input = None,
    keep: Annotated[
        str, typer.Option(help="record for the first extension: ewc, mas, si or a sum", rich_help_panel="Method")
    ] = "",
    cache: Cache = "",
    track: Track = "",
    resume: Resume = False,
) -> None:
    """Train a classifier of one task: the parent of later extensions."""
    with console.importing():
        from taskgraft import report
        from taskgraft.pipeline import train as job
        from taskgraft.pipeline.tracking import tracked

    with console.watching() as callbacks, tracked(track, out, asdict(config), callbacks) as callbacks:
        done = job.train(
            data, out, task=task, model=model, weights=weights, preprocessing=preprocessing, config=config, keep=keep,
            cache=cache_folder(cache), resume=resume, command=command_line(), callbacks=callbacks,
        )  # fmt: skip
    console.out([*report.summarize_run(done.record).to_lines(), f"model and report: {out}/report.html"])


def extend(
    parent: Parent,
    data: Data,
    out: Out,
    config: TrainingConfig,
    task: NewTask = "",
    into: Into = "",
    method: Method = DEFAULT_METHOD,
    old: Old = None,
    old_val: OldVal = None,
    arch: Arch = None,
    labels: Labels = None,
    preprocessing: Input = None,
    parent_task: ParentTask = "parent",
    no_parent_check: NoParentCheck = False,
    cache: Cache = "",
    budget: Budget = "",
    max_forgetting: MaxForgetting = "",
    jobs: Jobs = 1,
    track: Track = "",
    dry_run: DryRun = False,
    resume: Resume = False,
) -> None:
    """Extend a trained classifier with a new task; the old tasks' training images are not needed."""
    with console.importing():
        from taskgraft import report
        from taskgraft.pipeline.extend import carry_out
        from taskgraft.pipeline.request import Request
        from taskgraft.pipeline.tracking import tracked

    if bool(task) == bool(into):
        raise InputError(
            "one of --task and --into says what is learnt; give --task NAME for a new task, or --into TASK for more "
            "classes of an old one"
        )
    request = Request(
        parent, data, task or into, method, config, old, old_val or (), arch, labels, preprocessing, parent_task,
        bool(into), not no_parent_check,
    )  # fmt: skip
    if dry_run:
        _dry_run(request, out)
        return
    asked = {"cache": cache_folder(cache), "command": command_line()}
    with console.watching() as callbacks, tracked(track, out, asdict(config), callbacks) as callbacks:
        if method == "auto":
            require("tune", "optuna", what="--method auto")
            from taskgraft.commands.auto import auto
            from taskgraft.tuning.search_config import WorkerConfig

            done = auto(
                request,
                out,
                budget=budget,
                max_forgetting=max_forgetting,
                worker_config=WorkerConfig(jobs),
                **asked,
                callbacks=callbacks,
            )
        elif budget or max_forgetting or jobs > 1:
            raise InputError("--budget, --max-forgetting and --jobs belong to --method auto; add it or leave them out")
        else:
            done = carry_out(request, out, resume=resume, **asked, callbacks=callbacks)
    console.out([*report.summarize_run(done.record).to_lines(), f"model and report: {out}/report.html"])


def _dry_run(request: Request, out: Path) -> None:
    from taskgraft.commands.dry_run import outlook

    if request.method == "auto":
        raise InputError("--dry-run tells of one method; give another --method than auto")
    with console.watching() as callbacks:
        lines = outlook(request, out, callbacks=callbacks)
    console.out(lines)


def compare(
    parent: Parent,
    data: Data,
    out: Out,
    config: TrainingConfig,
    task: TaskName,
    methods: Annotated[
        str, typer.Option(help="methods to compare, separated by semicolons", rich_help_panel="Method")
    ] = "finetune; distill; branch",
    lrs: Annotated[
        str, typer.Option(help="learning rates, separated by commas [default: --lr]", rich_help_panel="Training")
    ] = "",
    seeds: Annotated[int, typer.Option(min=1, help="runs of each, from --seed on", rich_help_panel="Training")] = 3,
    separate: Annotated[
        float,
        typer.Option(
            min=0, help="train the new task alone with this many times the steps; 0 = not", rich_help_panel="Training"
        ),
    ] = 4.0,
    old: Old = None,
    old_val: OldVal = None,
    arch: Arch = None,
    labels: Labels = None,
    preprocessing: Input = None,
    parent_task: ParentTask = "parent",
    no_parent_check: NoParentCheck = False,
    cache: Cache = "",
) -> None:
    """Extend with several methods and seeds: table, figures, report. The same command goes on after a stop."""
    with console.importing():
        from taskgraft import report
        from taskgraft.commands.compare import compare, variants
        from taskgraft.pipeline.request import Request

    chosen = variants([name for name in methods.split(";") if name.strip()], _numbers(lrs), config)
    request = Request(
        parent, data, task, "finetune", config, old, old_val or (), arch, labels, preprocessing, parent_task,
        check_parent=not no_parent_check,
    )  # fmt: skip
    with console.watching() as callbacks:
        found = compare(
            request,
            chosen,
            out,
            seeds=seeds,
            separate=separate,
            cache=cache_folder(cache),
            command=command_line(),
            callbacks=callbacks,
        )
    table = report.format_comparison_table(found)
    console.out(
        [table, *report.summarize_comparison(found).to_lines(), f"table, figures and report: {out}/report.html"]
    )


def demo(
    out: Annotated[Path, typer.Argument(help="folder to write")] = Path("demo-run"),
    seeds: Annotated[int, typer.Option(min=1, help="runs of each arrangement")] = 1,
    cache: Cache = "",
) -> None:
    """Draw synthetic cars, train a classifier of makes, extend it with paints: the reference experiment in minutes."""
    with console.importing():
        from taskgraft import report
        from taskgraft.commands.demo import demo

    with console.watching(brief=True) as callbacks:
        found = demo(out, seeds=seeds, cache=cache_folder(cache), command=command_line(), callbacks=callbacks)
    comparison = out / "comparison"
    figures = [comparison / f"figure{number}.png" for number in (1, 2, 3)]
    model = comparison / found.variants[-1].folders[0] if found.variants[-1].folders else out / "alice"
    console.out([
        report.format_comparison_table(found),
        *(f"figure: {path.resolve()}" for path in figures if path.exists()),
        "",
        *report.summarize_comparison(found).to_lines(),
        f"report: {(comparison / 'report.html').resolve()}",
        f"next, try the model: {_program()} predict {model} {out / 'data' / 'paints' / 'val'} --out answers.csv",
    ])  # fmt: skip


def _program() -> str:
    """How this program is called from here: by its name, or by its place where the shell would not find it."""
    import shutil
    import sys

    return "taskgraft" if shutil.which("taskgraft") else sys.argv[0]


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise InputError(f"--rates {text!r}: give numbers separated by commas, such as 0.01,0.001") from error
