"""Commands that make models: train, extend, refresh, compress, merge, remove, compare, tune, demo."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, field, fields, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_type_hints

from cyclopts import Parameter
from cyclopts.validators import Number

from taskgraft.cli import console, flags, launch
from taskgraft.config import COMPRESSION_DEFAULTS, MANY_ADDED, REFRESH_DEFAULTS, TRAIN_DEFAULTS, TrainingConfig
from taskgraft.errors import InputError, require
from taskgraft.methods import presets
from taskgraft.tuning.search_config import SearchConfig, WorkerConfig

if TYPE_CHECKING:
    from taskgraft.pipeline.request import Request
    from taskgraft.pipeline.run import Extension
    from taskgraft.results.record import Comparison
    from taskgraft.types import Callbacks

    FromScratch = Compression = Refresh = TrainingConfig
else:  # the same fields, so that the help shows the defaults of these commands

    def _with_defaults(name: str, defaults: TrainingConfig) -> type:
        hints = get_type_hints(TrainingConfig, include_extras=True)
        declared = [
            (item.name, hints[item.name], field(default=getattr(defaults, item.name), metadata=item.metadata))
            for item in fields(TrainingConfig)
        ]
        return make_dataclass(name, declared, namespace={"__module__": __name__})

    FromScratch = _with_defaults("FromScratch", TRAIN_DEFAULTS)
    Compression = _with_defaults("Compression", COMPRESSION_DEFAULTS)
    Refresh = _with_defaults("Refresh", REFRESH_DEFAULTS)


@contextmanager
def _session(
    out: Path, config: TrainingConfig, processes: flags.ProcessOptions, track: str | None
) -> Iterator[tuple[bool, Callbacks]]:
    """Join the process group, show progress and track metrics; yields whether a launcher restarted the run."""
    from taskgraft.pipeline.tracking import tracked

    with (
        launch.joined(processes.heartbeat_timeout) as restarted,
        flags.on_hardware(processes),
        console.show_progress() as callbacks,
        tracked(track or "", out, asdict(config), callbacks) as callbacks,
    ):
        yield restarted, callbacks


def _build_request(
    parent: str, data: Path, task: str, method: str, config: TrainingConfig, options: flags.ParentOptions, into: bool
) -> Request:
    from taskgraft.pipeline.request import Request

    values = asdict(options)
    check_parent = not values.pop("no_parent_check")
    old_val, unlabeled = (values.pop(name) or () for name in ("old_val", "unlabeled"))
    return Request(
        parent, data, task, method, config, **values, old_val=old_val, unlabeled=unlabeled, into=into,
        check_parent=check_parent,
    )  # fmt: skip


def _print_run(run: Extension) -> None:
    from taskgraft import report

    summary = report.summarize_run(run.record).to_lines()
    console.print_results(*summary, f"model and report: {run.out}/report.html")


def _print_comparison(comparison: Comparison) -> None:
    from taskgraft import report

    table, remarks = report.list_comparison_rows(comparison), report.list_comparison_remarks(comparison)
    console.print_table(*table, plain=report.format_comparison_table(comparison), below=remarks)


def train(
    data: flags.Data,
    out: flags.Out,
    /,
    *,
    config: Annotated[FromScratch, Parameter(name="*", group=flags.TRAINING)] = FromScratch(),
    task: flags.Task = "label",
    model: Annotated[str | None, Parameter(name=("--model", "--arch"), group=flags.MODEL)] = None,
    weights: Annotated[str | None, Parameter(group=flags.MODEL)] = None,
    preprocessing: Annotated[str | None, Parameter(group=flags.MODEL)] = None,
    keep: Annotated[
        str,
        Parameter(
            group=flags.METHOD,
            help=f"Record what the first extension needs with one of these methods: {', '.join(presets.RECORDERS)}",
        ),
    ] = "",
    cache: flags.Cache = "",
    processes: flags.ProcessOptions = flags.ONE_PROCESS,
    track: flags.Track = None,
    resume: flags.Resume = False,
    settings_file: flags.SettingsFile = None,
) -> int | None:
    """Train a classifier that can be extended later.

    Args:
        model: timm architecture; resnet18 by default
        weights: Initialize the backbone from this model; needs --model if a file does not name its architecture
        preprocessing: Preprocessing such as '96 squash bilinear imagenet'
    """
    if processes.gpus > 1 and not launch.is_worker():
        return launch.launch(processes.gpus, processes.max_restarts, processes.device)
    with console.importing():
        from taskgraft.commands.train import train

    config = flags.training_config(config, processes)
    with _session(out, config, processes, track) as (restarted, callbacks):
        run = train(
            data, out, task=task, model=model, weights=weights, preprocessing=preprocessing, config=config, keep=keep,
            cache=flags.cache_folder(cache), resume=resume or restarted, command=flags.command_line(),
            callbacks=callbacks,
        )  # fmt: skip
        _print_run(run)


def extend(
    parent: flags.Parent,
    data: flags.Data,
    out: flags.Out,
    /,
    *,
    config: flags.Config = TrainingConfig(),
    task: flags.Task = "",
    into: Annotated[str, Parameter(group=flags.DATA)] = "",
    method: Annotated[
        str,
        Parameter(
            group=flags.METHOD,
            show_default=f"{presets.DEFAULT_METHOD}; {presets.INTO_FEW} with --into of under {MANY_ADDED} classes",
        ),
    ] = "",
    one_backbone: Annotated[bool, Parameter(group=flags.METHOD)] = False,
    options: flags.ParentOptions = flags.NO_PARENT_OPTIONS,
    cache: flags.Cache = "",
    budget: Annotated[str, Parameter(group=flags.METHOD)] = "",
    max_forgetting: Annotated[str, Parameter(group=flags.METHOD)] = "",
    jobs: Annotated[int, Parameter(group=flags.HARDWARE, validator=Number(gte=1))] = 1,
    processes: flags.ProcessOptions = flags.ONE_PROCESS,
    track: flags.Track = None,
    dry_run: Annotated[bool, Parameter(group=flags.OUTPUT)] = False,
    resume: flags.Resume = False,
    settings_file: flags.SettingsFile = None,
) -> int | None:
    """Extend a trained classifier with a new task.

    The old training images are not needed.

    Args:
        into: Add the classes in DATA to this existing task, instead of learning a new --task
        method: Method, or a sum of methods, against forgetting; see `taskgraft methods`
        one_backbone: Compress the child to one plain backbone in OUT; the child itself stays in OUT/teacher
        budget: Time limit such as 15m (--method auto only)
        max_forgetting: Best new-task accuracy with forgetting at most this, such as 1% (--method auto only)
        jobs: Worker processes (--method auto only)
        dry_run: Validate the inputs, print settings, memory and time, and write nothing
    """
    if processes.gpus > 1 and not launch.is_worker():
        return launch.launch(processes.gpus, processes.max_restarts, processes.device)
    if bool(task) == bool(into):
        raise InputError(
            "no task, or two: give --task NAME for a new task, or --into TASK to add classes to an existing one"
        )
    if method != "auto" and (budget or max_forgetting or jobs > 1):
        raise InputError("--budget, --max-forgetting and --jobs need --method auto; add it, or leave them out")
    if jobs > 1:
        flags.refuse_device(processes, "--jobs")
    if dry_run and method == "auto":
        raise InputError("--dry-run does not support --method auto; leave one of them out")
    if method == "auto" and one_backbone:
        raise InputError("--one-backbone needs a method; name it, or compress the selected child afterwards")
    with console.importing():
        from taskgraft.commands.extend import run_on_one_backbone
        from taskgraft.pipeline.run import run

    config = flags.training_config(config, processes)
    request = _build_request(parent, data, task or into, method, config, options, into=bool(into))
    if dry_run:
        from taskgraft.commands.dry_run import describe_run

        with flags.on_hardware(processes), console.show_progress() as callbacks:
            console.print_results(*describe_run(request, out, one_backbone=one_backbone, callbacks=callbacks))
        return
    with _session(out, config, processes, track) as (restarted, callbacks):
        if method == "auto":
            require("tune", "optuna", what="--method auto")
            from taskgraft.commands.auto import auto

            extension = auto(
                request, out, budget=budget, max_forgetting=max_forgetting, worker_config=WorkerConfig(jobs),
                cache=flags.cache_folder(cache), command=flags.command_line(), callbacks=callbacks,
            )  # fmt: skip
        else:
            carry_out = run_on_one_backbone if one_backbone else run
            extension = carry_out(
                request, out, resume=resume or restarted, cache=flags.cache_folder(cache), command=flags.command_line(),
                callbacks=callbacks,
            )  # fmt: skip
        _print_run(extension)


def compress(
    model: flags.Model,
    data: flags.Data,
    out: flags.Out,
    /,
    *,
    config: Annotated[Compression, Parameter(name="*", group=flags.TRAINING)] = Compression(),
    unlabeled: Annotated[list[Path] | None, Parameter(group=flags.DATA)] = None,
    old_val: Annotated[list[Path] | None, Parameter(group=flags.DATA)] = None,
    method: Annotated[str, Parameter(group=flags.METHOD)] = presets.COMPRESSION,
    student: Annotated[str | None, Parameter(group=flags.MODEL)] = None,
    arch: Annotated[str | None, Parameter(group=flags.MODEL)] = None,
    labels: Annotated[Path | None, Parameter(group=flags.MODEL)] = None,
    preprocessing: Annotated[str | None, Parameter(group=flags.MODEL)] = None,
    no_parent_check: Annotated[bool, Parameter(group=flags.MODEL)] = False,
    cache: flags.Cache = "",
    processes: flags.ProcessOptions = flags.ONE_PROCESS,
    track: flags.Track = None,
    resume: flags.Resume = False,
    settings_file: flags.SettingsFile = None,
) -> int | None:
    """Teach one plain backbone everything that a finished model does.

    The result is as large and as fast as one model, and plain timm loads it.

    Args:
        unlabeled: Images without labels, such as a day of the camera; repeat for more
        old_val: Validation images of the model's other tasks; repeat for each
        method: Method with a teacher; see `taskgraft methods`
        student: Another, smaller network: a timm architecture, from random weights, or a model to start from
        arch: timm architecture of a weights file
        labels: Class names of a weights file that has none: one per line in index order, JSON, YAML or CSV
        preprocessing: Preprocessing such as '96 squash bilinear imagenet', if the model does not declare its own
        no_parent_check: Continue even if the model is no better than chance on --old-val
    """
    if processes.gpus > 1 and not launch.is_worker():
        return launch.launch(processes.gpus, processes.max_restarts, processes.device)
    with console.importing():
        from taskgraft.commands.compress import compress

    config = flags.training_config(config, processes)
    with _session(out, config, processes, track) as (restarted, callbacks):
        run = compress(
            model, data, out, unlabeled=unlabeled or (), old_val=old_val or (), method=method, student=student,
            arch=arch, labels=labels, preprocessing=preprocessing, check_parent=not no_parent_check, config=config,
            cache=flags.cache_folder(cache), resume=resume or restarted, command=flags.command_line(),
            callbacks=callbacks,
        )  # fmt: skip
        _print_run(run)


def merge(
    model: flags.Model,
    other: Annotated[str, Parameter(help="Second model, of any architecture")],
    out: flags.Out,
    /,
    *,
    images: Annotated[list[Path], Parameter(group=flags.DATA)],
    config: Annotated[Compression, Parameter(name="*", group=flags.TRAINING)] = Compression(),
    val: Annotated[list[Path] | None, Parameter(group=flags.DATA)] = None,
    method: Annotated[str, Parameter(group=flags.METHOD)] = presets.COMPRESSION,
    student: Annotated[str | None, Parameter(group=flags.MODEL)] = None,
    ancestor: Annotated[str | None, Parameter(group=flags.MODEL)] = None,
    arch: Annotated[str | None, Parameter(group=flags.MODEL)] = None,
    labels: Annotated[Path | None, Parameter(group=flags.MODEL)] = None,
    preprocessing: Annotated[str | None, Parameter(group=flags.MODEL)] = None,
    no_parent_check: Annotated[bool, Parameter(group=flags.MODEL)] = False,
    cache: flags.Cache = "",
    processes: flags.ProcessOptions = flags.ONE_PROCESS,
    track: flags.Track = None,
    resume: flags.Resume = False,
    settings_file: flags.SettingsFile = None,
) -> int | None:
    """Merge two finished models into one plain backbone with the tasks of both.

    No labels are needed: both models answer every image, and the new one learns their answers.

    Args:
        images: Images without labels, such as both models were trained on; repeat for more
        val: Labeled images of some of the tasks, to measure accuracy; repeat for each
        method: Method with a teacher; see `taskgraft methods`
        student: Another network: a timm architecture, from random weights, or a model to start from
        ancestor: Model that both were trained from: also try task arithmetic and TIES
        arch: timm architecture of the first model, if it is a weights file
        labels: Class names of the first model, if it is a weights file, one per line in index order
        preprocessing: Preprocessing of the first model, such as '96 squash bilinear imagenet', if it declares none
        no_parent_check: Continue even if the models are no better than chance on --val
    """
    if processes.gpus > 1 and not launch.is_worker():
        return launch.launch(processes.gpus, processes.max_restarts, processes.device)
    with console.importing():
        from taskgraft.commands.merge import merge

    config = flags.training_config(config, processes)
    with _session(out, config, processes, track) as (restarted, callbacks):
        run = merge(
            model, other, out, images=images, val=val or (), method=method, student=student, ancestor=ancestor,
            arch=arch, labels=labels, preprocessing=preprocessing, check_parent=not no_parent_check, config=config,
            cache=flags.cache_folder(cache), resume=resume or restarted, command=flags.command_line(),
            callbacks=callbacks,
        )  # fmt: skip
        _print_run(run)


def refresh(
    model: flags.Model,
    data: flags.Data,
    out: flags.Out,
    /,
    *,
    config: Annotated[Refresh, Parameter(name="*", group=flags.TRAINING)] = Refresh(),
    task: Annotated[str, Parameter(group=flags.DATA, show_default="the one whose classes DATA has")] = "",
    old_val: Annotated[list[Path] | None, Parameter(group=flags.DATA)] = None,
    unlabeled: Annotated[list[Path] | None, Parameter(group=flags.DATA)] = None,
    method: Annotated[
        str,
        Parameter(
            group=flags.METHOD, show_default=f"{presets.REFRESH}; {presets.REFRESH_UNMEASURED} without --old-val"
        ),
    ] = "",
    no_parent_check: Annotated[bool, Parameter(group=flags.MODEL)] = False,
    options: flags.ModelOptions = flags.NO_MODEL_OPTIONS,
    cache: flags.Cache = "",
    processes: flags.ProcessOptions = flags.ONE_PROCESS,
    track: flags.Track = None,
    resume: flags.Resume = False,
    settings_file: flags.SettingsFile = None,
) -> int | None:
    """Teach a task new images of classes that it has: another camera, another season.

    The old images are not needed. To add classes or a task, use extend.

    Args:
        task: Task to refresh
        old_val: Validation images of the old kind, to measure what is lost; repeat for each task
        unlabeled: Images without labels, such as a day of the new camera; repeat for more
        method: Method, or a sum of methods, against forgetting; see `taskgraft methods`
        no_parent_check: Continue even if the model is no better than chance on --old-val
    """
    if processes.gpus > 1 and not launch.is_worker():
        return launch.launch(processes.gpus, processes.max_restarts, processes.device)
    with console.importing():
        from taskgraft.commands.refresh import refresh

    config = flags.training_config(config, processes)
    with _session(out, config, processes, track) as (restarted, callbacks):
        run = refresh(
            model, data, out, task=task, old_val=old_val or (), unlabeled=unlabeled or (), method=method,
            check_parent=not no_parent_check, config=config, cache=flags.cache_folder(cache),
            resume=resume or restarted, command=flags.command_line(), callbacks=callbacks, **asdict(options),
        )  # fmt: skip
        _print_run(run)


def remove(
    model: flags.Model,
    out: Annotated[Path, Parameter(help="Folder to write the model to, which must not exist")],
    /,
    *,
    task: Annotated[str, Parameter(group=flags.DATA)],
    classes: Annotated[
        list[str] | None, Parameter(group=flags.DATA, consume_multiple=True, show_default="the whole task")
    ] = None,
    options: flags.ModelOptions = flags.NO_MODEL_OPTIONS,
    dry_run: Annotated[bool, Parameter(group=flags.OUTPUT)] = False,
) -> None:
    """Remove a task, or some of its classes, from a model.

    Nothing is trained. Everything that is left answers bit for bit as before.

    Args:
        task: Task to remove, or to remove --classes from
        classes: Classes to remove, one or several; the others stay
        dry_run: Print what would be removed and what would be left, and write nothing
    """
    with console.importing():
        from taskgraft.commands.remove import remove

    with console.show_progress() as callbacks:
        done = remove(
            model, out, task=task, classes=classes or (), dry_run=dry_run, callbacks=callbacks, **asdict(options)
        )
    left = ", ".join(f"{item.name} ({len(item.classes)})" for item in done.bundle.tasks)
    verb = "would be removed" if dry_run else "removed"
    gone = ", ".join(done.classes[:10]) + (" …" if len(done.classes) > 10 else "")
    console.print_results(
        f"{verb}: {task}: {gone}" if classes else f"{verb}: {task} ({len(done.classes)} classes)",
        f"left, with the same logits to the bit: {left}",
        *(f"  {note}" for note in done.notes),
        f"nothing was written to {out}" if dry_run else f"model: {out}",
    )


def compare(
    parent: flags.Parent,
    data: flags.Data,
    out: flags.Out,
    /,
    *,
    config: flags.Config = TrainingConfig(),
    task: flags.Task,
    methods: Annotated[str, Parameter(group=flags.METHOD)] = "; ".join(presets.COMPARED),
    lrs: Annotated[str, Parameter(group=flags.TRAINING, show_default="--lr")] = "",
    seeds: Annotated[int, Parameter(group=flags.TRAINING, validator=Number(gte=1))] = 3,
    separate: Annotated[float, Parameter(group=flags.TRAINING, validator=Number(gte=0))] = 4.0,
    options: flags.ParentOptions = flags.NO_PARENT_OPTIONS,
    cache: flags.Cache = "",
    hardware: flags.HardwareOptions = flags.ANY_HARDWARE,
    settings_file: flags.SettingsFile = None,
) -> None:
    """Compare methods and learning rates over several seeds.

    Writes a table, figures and a report. Rerun the same command to resume.

    Args:
        methods: Methods to compare, separated by semicolons
        lrs: Learning rates to compare, separated by commas
        seeds: Runs per configuration, with consecutive seeds from --seed on
        separate: Steps of the single-task baseline as a multiple of --steps; 0 = no baseline
    """
    with console.importing():
        from taskgraft import report
        from taskgraft.commands.compare import compare, variants

    try:
        numbers = [float(text) for text in lrs.split(",") if text.strip()]
    except ValueError as error:
        raise InputError(f"--lrs {lrs!r}: give numbers separated by commas, such as 0.01,0.001") from error
    config = flags.training_config(config, hardware)
    request = _build_request(parent, data, task, presets.BASELINE, config, options, into=False)
    with flags.on_hardware(hardware), console.show_progress() as callbacks:
        comparison = compare(
            request, variants([name for name in methods.split(";") if name.strip()], numbers, config), out, seeds=seeds,
            separate=separate, cache=flags.cache_folder(cache), command=flags.command_line(), callbacks=callbacks,
        )  # fmt: skip
    _print_comparison(comparison)
    console.print_results(
        *report.summarize_comparison(comparison).to_lines(),
        f"table, figures and report: {out}/report.html",
    )


def tune(
    parent: flags.Parent,
    data: flags.Data,
    out: Annotated[Path, Parameter(help="Folder of the search; rerun to resume")],
    /,
    *,
    config: flags.Config = TrainingConfig(),
    search_config: Annotated[SearchConfig, Parameter(name="*", group=flags.SEARCH)] = SearchConfig(),
    worker_config: Annotated[WorkerConfig, Parameter(name="*", group=flags.HARDWARE)] = WorkerConfig(),
    task: flags.Task,
    method: Annotated[str, Parameter(group=flags.METHOD)] = presets.SEARCHED,
    space: Annotated[str, Parameter(group=flags.SEARCH)] = "",
    options: flags.ParentOptions = flags.NO_PARENT_OPTIONS,
    cache: flags.Cache = "",
    hardware: flags.HardwareOptions = flags.ANY_HARDWARE,
    settings_file: flags.SettingsFile = None,
) -> None:
    """Tune methods and training settings.

    Writes the Pareto front of old and new accuracy, and three selected models. Rerun the same command to resume.

    Args:
        method: Method or sum of methods, with ranges such as strength=1..100 or strength=[1, 10]; none = tune all
        space: Ranges of training settings, such as 'lr=1e-4..1e-2'
    """
    require("tune", "optuna", what="tune")
    if worker_config.jobs > 1 or worker_config.ray:
        flags.refuse_device(hardware, "--ray" if worker_config.ray else "--jobs")
    with console.importing():
        from taskgraft import report
        from taskgraft.commands.tune import tune
        from taskgraft.tuning.space import parse

    config = flags.training_config(config, hardware)
    request = _build_request(parent, data, task, presets.BASELINE, config, options, into=False)
    with flags.on_hardware(hardware), console.show_progress() as callbacks:
        search = tune(
            request, parse(method, space, config), out, search_config=search_config, worker_config=worker_config,
            cache=flags.cache_folder(cache), command=flags.command_line(), callbacks=callbacks,
        )  # fmt: skip
    console.print_results(*report.summarize_search(search), f"search, frontier and report: {out}/report.html")


def demo(
    out: Annotated[Path, Parameter(help="Folder to write")] = Path("demo-run"),
    /,
    *,
    seeds: Annotated[int, Parameter(validator=Number(gte=1))] = 1,
    cache: flags.Cache = "",
    hardware: flags.DeviceOptions = flags.ANY_DEVICE,
) -> None:
    """Reproduce the reference experiment on synthetic cars, offline and within minutes.

    Draws the images, trains a classifier of makes, extends it with paints in several configurations, and reports.

    Args:
        seeds: Runs per configuration
    """
    with console.importing():
        from taskgraft import report
        from taskgraft.commands.demo import demo

    with flags.on_hardware(hardware), console.show_progress(brief=True) as callbacks:
        comparison = demo(
            out, seeds=seeds, cache=flags.cache_folder(cache), command=flags.command_line(), callbacks=callbacks
        )
    folder = out / "comparison"
    runs = comparison.variants[-1].folders
    model = folder / runs[0] if runs else out / "alice"
    program = "taskgraft"
    if not shutil.which(program):
        as_module = sys.argv[0].endswith("__main__.py")
        program = f"{sys.executable} -m taskgraft.cli" if as_module else sys.argv[0]
    _print_comparison(comparison)
    console.print_results(
        *(f"figure: {path.resolve()}" for path in sorted(folder.glob("figure[123].png"))),
        "",
        *report.summarize_comparison(comparison).to_lines(),
        f"report: {(folder / 'report.html').resolve()}",
        f"next, try the model: {program} predict {model} {out / 'data' / 'paints' / 'val'} --out answers.csv",
    )
