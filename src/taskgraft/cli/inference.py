"""Commands that use a trained model: predict, distribution, calibrate, evaluate, export, serve."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from taskgraft.cli import console, flags
from taskgraft.config import parse_duration
from taskgraft.errors import InputError
from taskgraft.serving.limits import Limits

if TYPE_CHECKING:
    from collections.abc import Iterable

    from taskgraft.commands.predict import Summary
    from taskgraft.commands.prediction_files import Row

Every = Annotated[
    str, Parameter(group=flags.DATA, help="Time between the frames taken from a video, such as 0.5s or 40ms")
]
LabeledTask = Annotated[
    str | None,
    Parameter(group=flags.DATA, help="Task that the labels belong to; inferred from the class names by default"),
]


def predict(
    model: flags.Model,
    /,
    *paths: Annotated[
        str,
        Parameter(
            help="Images, videos and folders of them; - reads paths from stdin, one per line", allow_leading_hyphen=True
        ),
    ],
    out: Annotated[Path | None, Parameter(group=flags.OUTPUT, show_default="JSON lines on stdout")] = None,
    top: Annotated[int, Parameter(group=flags.OUTPUT, validator=Number(gte=1))] = 1,
    raw: Annotated[bool, Parameter(group=flags.OUTPUT)] = False,
    every: Every = "0.5s",
    resume: Annotated[bool, Parameter(group=flags.OUTPUT)] = False,
    batch_size: flags.BatchSize = 32,
    ray: Annotated[str | None, Parameter(group=flags.HARDWARE)] = None,
    hardware: flags.DeviceOptions = flags.ANY_DEVICE,
    options: flags.ModelOptions = flags.NO_MODEL_OPTIONS,
) -> int:
    """Predict all tasks for images and videos.

    Rows are in the given order. An image that cannot be read gets a row with the error; exits 1 if none can be
    read. Under torchrun, each process predicts a part of the images.

    Args:
        out: File to write: .jsonl, .csv or .parquet
        top: Top-k predictions per task
        raw: Do not calibrate probabilities with the temperatures of the task cards
        resume: Continue an interrupted run into --out
        ray: Distribute the work over a Ray cluster: its address, or local
    """
    if ray:
        flags.refuse_device(hardware, "--ray")
    with console.importing():
        from taskgraft.commands import predict as commands

    worker, workers = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if out is None and (resume or ray or workers > 1):
        raise InputError("predictions on stdout cannot be resumed or distributed; add --out FILE")
    files = _expand_stdin(paths)
    settings = {
        "top": top,
        "raw": raw,
        "every": parse_duration(every, "--every"),
        "batch_size": batch_size,
        **asdict(options),
    }
    with flags.on_hardware(hardware), console.show_progress() as callbacks:
        if out is None:
            done = _print_rows(commands.predict_files(model, files, callbacks=callbacks, **settings))
        elif ray:
            done = commands.predict_on_ray(
                model, files, out, address=ray, resume=resume, callbacks=callbacks, **settings
            )
        else:
            shard = worker, workers
            done = commands.predict_to(model, files, out, resume=resume, shard=shard, callbacks=callbacks, **settings)
        if done.unreadable:
            total = done.predicted + done.unreadable
            callbacks.info(f"{done.unreadable} of {total} images could not be read; see their rows")
        if not done.done:
            callbacks.info(f"this part is done; {out} is written when all parts are (rerun with --resume if it is not)")
    if out is not None and done.done:
        console.print_results(f"{out}: {done.predicted} predicted, {done.unreadable} unreadable")
    return 1 if done.unreadable and not done.predicted else 0


def _print_rows(rows: Iterable[Row]) -> Summary:
    from taskgraft.commands.predict import Summary
    from taskgraft.commands.prediction_files import to_json

    predicted = unreadable = 0
    for row in rows:
        console.print_results(to_json(row))
        predicted, unreadable = predicted + ("tasks" in row), unreadable + ("error" in row)
    return Summary(predicted, unreadable)


def distribution(
    model: flags.Model,
    /,
    *paths: Annotated[
        str,
        Parameter(
            help="Images, videos and folders of them, or one table with a column path, and track or clip; "
            "- reads paths from stdin",
            allow_leading_hyphen=True,
        ),
    ],
    task: Annotated[list[str] | None, Parameter(group=flags.DATA, show_default="all")] = None,
    joint: Annotated[list[str] | None, Parameter(group=flags.DATA)] = None,
    estimator: Literal["auto", "emq", "pacc", "naive"] = "auto",
    block: float = 10.0,
    every: Every = "0.5s",
    out: Annotated[Path | None, Parameter(group=flags.OUTPUT)] = None,
    as_json: flags.Json = False,
    batch_size: flags.BatchSize = 32,
    hardware: flags.DeviceOptions = flags.ANY_DEVICE,
    options: flags.ModelOptions = flags.NO_MODEL_OPTIONS,
) -> None:
    """Estimate class prevalence with 95 % intervals.

    Predictions are corrected for the model's errors as its task card records them; the naive count is shown as well.

    Args:
        task: Task to estimate; may be repeated
        joint: Two tasks such as make,color, to estimate the prevalence of pairs; may be repeated
        estimator: Estimator; auto corrects as far as the counts differ from the task card's, naive not at all
        block: Bootstrap block length of videos in seconds
        out: Folder for distribution.json, distribution.png and distribution.html
    """
    from taskgraft import report
    from taskgraft.commands.distribution import distribution

    pairs = [_parse_pair(text) for text in joint or ()]
    with flags.on_hardware(hardware), console.show_progress() as callbacks:
        estimate = distribution(
            model, _expand_stdin(paths), tasks=task or (), joint=pairs, estimator=estimator, block=block, out=out,
            callbacks=callbacks, every=parse_duration(every, "--every"), batch_size=batch_size, **asdict(options),
        )  # fmt: skip
    if as_json:
        console.print_results(estimate.model_dump_json(indent=2))
        return
    page = [f"page, figure and JSON: {out}/distribution.html"] if out else []
    console.print_results(*report.format_distribution(estimate), *page)


def calibrate(
    model: flags.Bundle,
    data: Annotated[Path, Parameter(help="Labeled images that the model was not trained on")],
    /,
    *,
    task: LabeledTask = None,
    cache: flags.Cache = "",
    hardware: flags.DeviceOptions = flags.ANY_DEVICE,
    as_json: flags.Json = False,
) -> None:
    """Calibrate the probabilities of a task.

    Fits a temperature on labeled images and updates the task card. The weights do not change.
    """
    from taskgraft.commands.calibrate import calibrate

    with flags.on_hardware(hardware), console.show_progress() as callbacks:
        card = calibrate(model, data, task=task, cache=flags.cache_folder(cache), callbacks=callbacks)
    fit = card["calibration"]
    if as_json:
        console.print_json({"task": card["task"], **fit})
        return
    console.print_results(
        f"{card['task']}: temperature {fit['temperature']:.3f} from {fit['images']} images",
        f"  log loss           {fit['loss_before']:.4f} → {fit['loss_after']:.4f}",
        f"  calibration error  {fit['error_before']:.4f} → {fit['error_after']:.4f}",
        "  (after: two-fold cross-validation)",
        f"task card: {model}/cards/{card['task']}.json",
    )


def evaluate(
    model: flags.Model,
    data: Annotated[
        Path | None, Parameter(help="Labeled images, of which the validation split is used if there is one")
    ] = None,
    /,
    *,
    task: LabeledTask = None,
    verify: bool = False,
    html: Annotated[Path | None, Parameter(group=flags.OUTPUT)] = None,
    as_json: flags.Json = False,
    cache: flags.Cache = "",
    hardware: flags.DeviceOptions = flags.ANY_DEVICE,
    options: flags.ModelOptions = flags.NO_MODEL_OPTIONS,
) -> int:
    """Evaluate a model on labeled images.

    Reports accuracy with its 95 % interval, calibration and the worst classes.

    Args:
        verify: Instead, check a bundle against its digests, its record and its recorded predictions
        html: Write a page with images to this file
    """
    if verify and html:
        raise InputError("--verify writes no page; leave --html out")
    if verify:
        return _verify(model, data, cache, hardware, as_json)
    if data is None:
        raise InputError("evaluate needs labeled images; give DATA, or --verify to check a bundle without images")
    with console.importing():
        from taskgraft.commands.evaluate import evaluate

    with flags.on_hardware(hardware), console.show_progress() as callbacks:
        result = evaluate(
            model, data, task=task, html=html, cache=flags.cache_folder(cache), callbacks=callbacks, **asdict(options)
        )
    if as_json:
        console.print_json(result)
        return 0
    balance = (
        f"  balanced accuracy {result['balanced_accuracy']:.1%}; always predicting {result['majority']!r} gives "
        f"{result['chance']:.1%} accuracy"
    )
    top_5 = "" if result["top_5_accuracy"] is None else f", top-5 accuracy {result['top_5_accuracy']:.1%}"
    console.print_results(
        f"{result['task']}: accuracy {result['accuracy']:.1%} on {result['images']} images (95 % interval "
        f"{result['low']:.1%} to {result['high']:.1%}), calibration error {result['calibration_error']:.3f}",
        f"  macro-F1 {result['macro_f1']:.1%}{top_5}",
        *([balance] if result["uneven"] else []),
        *([f"  never predicted: {', '.join(result['never_predicted'])}"] if result["never_predicted"] else []),
        *(f"  worst: {name} {accuracy:.0%} of {count}" for name, accuracy, count in result["worst"]),
        *([f"page: {html}"] if html else []),
    )
    return 0


def _verify(model: str, data: Path | None, cache: str, hardware: flags.DeviceOptions, as_json: bool) -> int:
    from taskgraft.commands.verify import verify

    with flags.on_hardware(hardware), console.show_progress() as callbacks:
        result = verify(model, data, cache=flags.cache_folder(cache), callbacks=callbacks)
    lines = result.pop("lines")
    if as_json:
        console.print_json(result)
    else:
        console.print_results(*lines)
    return 0 if result["intact"] else 1


def export(
    model: flags.Model,
    out: Annotated[Path, Parameter(help="Folder to write, which must not exist")],
    /,
    *,
    format: Literal["safetensors", "onnx", "pt2", "openvino", "triton"] = "onnx",
    precision: Literal["fp32", "int8-dynamic", "int8-static"] = "fp32",
    uint8_input: bool = False,
    check: Annotated[list[Path] | None, Parameter(group=flags.DATA, show_default="those of the record")] = None,
    keep: Annotated[bool, Parameter(group=flags.OUTPUT)] = False,
    name: Annotated[str | None, Parameter(show_default="the last part of MODEL")] = None,
    as_json: flags.Json = False,
    cache: flags.Cache = "",
    workers: flags.Workers = 0,
    options: flags.ModelOptions = flags.NO_MODEL_OPTIONS,
) -> int:
    """Export a model to another format or runtime.

    Runs the exported model and compares its predictions; exits 1 if they differ too much.

    Args:
        format: Format to export to
        precision: Numeric precision; int8 is for onnx and triton
        uint8_input: Accept uint8 pixels [B, H, W, C], and normalize them in the exported graph
        check: Labeled images to compare on; repeat for each task
        keep: Keep the files even if the predictions differ too much
        name: Name of the model in a Triton repository
    """
    from taskgraft.commands.export import export
    from taskgraft.exports import verify

    with flags.on_hardware(flags.DeviceOptions(workers=workers)), console.show_progress() as callbacks:
        result = export(
            model, out, format=format, precision=precision, uint8_input=uint8_input, check=check or (), keep=keep,
            name=name, cache=flags.cache_folder(cache), callbacks=callbacks, **asdict(options),
        )  # fmt: skip
    written = keep or not result.refused
    if as_json:
        tasks = [check.model_dump() for check in result.checks]
        console.print_json({"out": str(out) if written else None, "refused": result.refused, "tasks": tasks})
    else:
        lines = [verify.format_check(check) for check in result.checks]
        if result.refused:
            lines.append(f"REFUSED: {result.refused}" + ("" if written else "; nothing was written (--keep writes it)"))
        console.print_results(*lines, *([f"{format}: {out}"] if written else []))
    return 1 if result.refused else 0


def serve(
    model: flags.Model,
    /,
    *,
    limits: Annotated[Limits, Parameter(name="*", group=flags.LIMITS)] = Limits(),
    host: str = "127.0.0.1",
    port: Annotated[int, Parameter(validator=Number(gte=0, lte=65535))] = 8000,
    token: Annotated[str | None, Parameter(env_var="TASKGRAFT_TOKEN")] = None,
    insecure: bool = False,
    require_signature: Annotated[
        Path | None, Parameter(group=flags.MODEL, env_var="TASKGRAFT_REQUIRE_SIGNATURE")
    ] = None,
    backend: Annotated[Literal["torch", "onnx"], Parameter(group=flags.HARDWARE)] = "torch",
    device: flags.Device = "auto",
    name: Annotated[str | None, Parameter(show_default="the last part of MODEL")] = None,
    trial: bool = False,
    options: flags.ModelOptions = flags.NO_MODEL_OPTIONS,
) -> None:
    """Serve a model over HTTP.

    Speaks the Open Inference Protocol V2, with /predict, /metrics and a web page at / as well.

    Args:
        host: Address to listen on; other than on loopback, a token is required
        port: Port to listen on; 0 = any free port
        token: Token that clients must send as Authorization: Bearer TOKEN
        insecure: Allow other machines to connect without a token
        require_signature: Public key; refuse a model that its owner has not signed, or that was altered since
        backend: Inference backend
        name: Name of the model in requests
        trial: Smoke test: load the model, predict one image, exit
    """
    from taskgraft.commands.serve import serve

    if backend == "onnx" and device not in ("auto", "cpu"):
        raise InputError(f"--device {device}: --backend onnx computes on the CPU; leave one of them out")
    with flags.on_hardware(flags.DeviceOptions(device)), console.show_progress() as callbacks:
        description = serve(
            model, host=host, port=port, token=token or None, insecure=insecure,
            require_signature=require_signature, backend=backend, name=name, limits=limits, trial=trial,
            callbacks=callbacks, **asdict(options),
        )  # fmt: skip
    if trial:
        tasks = ", ".join(f"{task['name']} ({len(task['classes'])} classes)" for task in description["tasks"])
        console.print_results(f"{description['name']}: ready to serve {tasks}")


def _expand_stdin(paths: tuple[str, ...]) -> list[str]:
    """Return the paths of the command line, with - replaced by those on stdin."""
    expanded: list[str] = []
    for path in paths:
        if path == "-":
            expanded += [os.fsdecode(name) for name in sys.stdin.buffer.read().splitlines() if name.strip()]
        elif path.startswith("-"):
            raise InputError(f"unknown option {path}; write ./{path} if it is a file")
        else:
            expanded.append(path)
    return expanded


def _parse_pair(text: str) -> tuple[str, str]:
    names = [name.strip() for name in text.split(",")]
    if len(names) != 2:
        raise InputError(f"--joint {text!r}: give two tasks separated by a comma, such as make,color")
    return names[0], names[1]
