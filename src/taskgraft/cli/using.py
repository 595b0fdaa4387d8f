"""Commands that use a model on images without labels, and the one that makes its probabilities trustworthy."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from taskgraft.cli import console
from taskgraft.cli.options import Arch, Cache, Input, Labels, ParentTask, cache_folder

Model = Annotated[str, typer.Argument(help="a bundle, or any parent that `extend` opens")]
Paths = Annotated[
    list[str], typer.Argument(help="images, videos, folders of them; - reads paths from stdin, one a line")
]
Every = Annotated[str, typer.Option(help="time between the frames of a video that are looked at, such as 0.5s or 40ms")]
Batch = Annotated[int, typer.Option(min=1, help="images of one pass", rich_help_panel="Hardware")]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command(epilog="Example: taskgraft predict demo-run/alice demo-run/data/makes --top 3 --out answers.csv")(
        predict
    )
    app.command(epilog="Example: taskgraft distribution demo-run/alice demo-run/data/makes --out shares")(distribution)
    app.command(epilog="Example: taskgraft calibrate demo-run/alice demo-run/data/makes")(calibrate)


def predict(
    model: Model,
    paths: Paths,
    out: Annotated[
        Path | None,
        typer.Option(help="file to write: .jsonl, .csv or .parquet [default: JSON lines on stdout]"),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="answers of each task, the most probable first")] = 1,
    raw: Annotated[
        bool, typer.Option("--raw", help="probabilities without the temperatures of the task cards")
    ] = False,
    every: Every = "0.5s",
    resume: Annotated[bool, typer.Option("--resume", help="go on with an interrupted run into --out")] = False,
    batch: Batch = 32,
    ray: Annotated[
        str | None,
        typer.Option(help="share the work over a Ray cluster: its address, or local", rich_help_panel="Hardware"),
    ] = None,
    arch: Arch = None,
    labels: Labels = None,
    preprocessing: Input = None,
    parent_task: ParentTask = "parent",
) -> None:
    """Answer all tasks for images and videos, in one pass: labels and probabilities, in the order given.

    An image that cannot be read gets a row with an error; exit 1 if nothing could be read. Under torchrun every
    process takes its share of the work into --out.
    """
    with console.importing():
        from taskgraft.commands import predict as job
        from taskgraft.commands.rows import line
    from taskgraft.errors import InputError

    given, shard = _paths(paths), (int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))
    asked = job.Asked(model, top, raw, _seconds(every), batch, arch, labels, preprocessing, parent_task)
    if out is None and (resume or ray or shard[1] > 1):
        raise InputError("answers on stdout are not kept for --resume, --ray and torchrun; add --out FILE")
    with console.watching() as callbacks:
        if out is None:
            done = _print_rows(job.answer(asked, given, callbacks), line)
        elif ray:
            done = job.predict_on_ray(ray, out, asked, given, resume=resume, callbacks=callbacks)
        else:
            done = job.predict_to(out, asked, given, resume=resume, shard=shard, callbacks=callbacks)
        if done.bad:
            callbacks.info(f"{done.bad} of {done.read + done.bad} could not be read; their rows say why")
        if not done.done:
            callbacks.info(
                f"this share is done; {out} is written when all are (the same command with --resume sees to it)"
            )
    if out is not None and done.done:
        console.out([f"{done.read} answered, {done.bad} not readable: {out}"])
    if done.bad and not done.read:
        raise typer.Exit(1)


def _print_rows(rows: Any, line: Any) -> Any:
    from taskgraft.commands.predict import Summary

    read = bad = 0
    for row in rows:
        console.out([line(row)])
        read, bad = read + ("tasks" in row), bad + ("error" in row)
    return Summary(read, bad)


def distribution(
    model: Model,
    paths: Annotated[
        list[str],
        typer.Argument(
            help="images, videos, folders of them; or one table with a column path, and track or clip; - reads stdin"
        ),
    ],
    task: Annotated[list[str] | None, typer.Option(help="task to estimate; may be repeated [default: all]")] = None,
    joint: Annotated[
        list[str] | None, typer.Option(help="two tasks, for the shares of pairs, such as make,colour")
    ] = None,
    estimator: Annotated[
        str, typer.Option(help="emq, pacc or naive; naive counts answers and corrects nothing")
    ] = "emq",
    block: Annotated[float, typer.Option(help="seconds of a video that are resampled as one")] = 10.0,
    every: Every = "0.5s",
    out: Annotated[
        Path | None, typer.Option(help="folder for distribution.json, distribution.png, distribution.html")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    batch: Batch = 32,
    arch: Arch = None,
    labels: Labels = None,
    preprocessing: Input = None,
    parent_task: ParentTask = "parent",
) -> None:
    """Estimate the share of each class, corrected for the model's errors, with 95 % intervals.

    What corrects is the task card, which train and extend measured. The naive count stands beside it.
    """
    from typing import cast, get_args

    from taskgraft import report
    from taskgraft.commands import distribution as job
    from taskgraft.errors import InputError
    from taskgraft.quantification.estimate import Estimator

    if estimator not in get_args(Estimator):
        raise InputError(f"--estimator {estimator!r} is not known; give one of {', '.join(get_args(Estimator))}")
    pairs = [tuple(name.strip() for name in text.split(",")) for text in joint or ()]
    if any(len(pair) != 2 for pair in pairs):
        raise InputError("--joint takes two tasks; give them with a comma between, such as make,colour")
    with console.watching() as callbacks:
        found = job.distribution(
            model, _paths(paths), tasks=task or (), joint=cast(list[tuple[str, str]], pairs),
            estimator=cast(Estimator, estimator), block=block, out=out, callbacks=callbacks, every=_seconds(every),
            batch_size=batch, arch=arch, labels=labels, preprocessing=preprocessing, parent_task=parent_task,
        )  # fmt: skip
    lines = [found.model_dump_json(indent=2)] if as_json else report.format_distribution(found)
    if out is not None and not as_json:
        lines.append(f"page, figure and JSON: {out}/distribution.html")
    console.out(lines)


def calibrate(
    model: Annotated[Path, typer.Argument(help="a bundle: the OUT folder of train or extend")],
    data: Annotated[Path, typer.Argument(help="labeled images that the model was not trained on")],
    task: Annotated[
        str | None, typer.Option(help="task that the labels are of [default: found by its classes]")
    ] = None,
    cache: Cache = "",
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Fit a task's temperature on labeled images, and write its task card anew. The weights do not change."""
    from taskgraft.commands import calibrate as job

    with console.watching() as callbacks:
        card = job.calibrate(model, data, task=task, cache=cache_folder(cache), callbacks=callbacks)
    found = card["calibration"]
    if as_json:
        console.out([json.dumps({"task": card["task"], **found}, indent=2, ensure_ascii=False)])
        return
    console.out([
        f"{card['task']}: temperature {found['temperature']:.3f}, from {found['images']} images",
        f"  log-loss {found['loss_before']:.4f} before, {found['loss_after']:.4f} after",
        f"  calibration error {found['error_before']:.4f} before, {found['error_after']:.4f} after",
        "  (after: each half of the images under the temperature that the other half chose)",
        f"card: {model}/cards/{card['task']}.json",
    ])  # fmt: skip


def _paths(given: list[str]) -> list[str]:
    """The paths of the command line, with those on stdin in the place of -."""
    found: list[str] = []
    for path in given:
        if path == "-":
            found += [os.fsdecode(name) for name in sys.stdin.buffer.read().splitlines() if name.strip()]
        else:
            found.append(path)
    return found


def _seconds(text: str) -> float:
    """Seconds from "0.5s", "500ms" or "0.5"."""
    import math

    from taskgraft.errors import InputError

    factor = 1e-3 if text.endswith("ms") else 1.0
    try:
        value = factor * float(text.removesuffix("ms").removesuffix("s"))
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise InputError(f"--every {text!r}: give a time above 0, such as 0.5s or 40ms")
    return value
