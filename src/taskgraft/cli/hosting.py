"""Commands that hand a model on: export, serve."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from taskgraft.cli import console
from taskgraft.cli.options import Arch, Cache, Input, Labels, ParentTask, cache_folder, with_flags
from taskgraft.serving.limits import Limits

Model = Annotated[str, typer.Argument(help="a bundle, or any parent that `extend` opens")]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command(epilog="Example: taskgraft export demo-run/alice demo-run/alice-onnx --format onnx")(export)
    app.command(epilog="Example: taskgraft serve demo-run/alice --port 0 --trial")(
        with_flags(Limits(), "limits", "Limits")(serve)
    )


def export(
    model: Model,
    out: Annotated[Path, typer.Argument(help="folder to write; it must not exist")],
    format: Annotated[str, typer.Option(help="safetensors | onnx | pt2 | openvino | triton")] = "onnx",
    precision: Annotated[str, typer.Option(help="fp32 | int8-dynamic | int8-static (onnx and triton)")] = "fp32",
    uint8_input: Annotated[
        bool, typer.Option("--uint8-input", help="the file takes uint8 pixels [B, H, W, 3] and normalizes them itself")
    ] = False,
    check: Annotated[
        list[Path] | None,
        typer.Option(help="labeled images to compare on; once for each task [default: those the record names]"),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="leave the files even where they differ too much")] = False,
    name: Annotated[
        str | None, typer.Option(help="what a triton repository calls the model [default: MODEL's last part]")
    ] = None,
    arch: Arch = None,
    labels: Labels = None,
    preprocessing: Input = None,
    parent_task: ParentTask = "parent",
    cache: Cache = "",
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Write a model for another runtime, open it there, and compare its answers. Exit 1 where they differ too much."""
    from taskgraft.commands import export as job
    from taskgraft.exports import verify

    with console.watching() as callbacks:
        done = job.export(
            model, out, format=format, precision=precision, uint8_input=uint8_input, check=check or (), keep=keep,
            name=name, arch=arch, labels=labels, preprocessing=preprocessing, parent_task=parent_task, cache=cache_folder(cache),
            callbacks=callbacks,
        )  # fmt: skip
    kept = not done.refused or keep
    if as_json:
        found = {"out": str(out) if kept else None, "refused": done.refused}
        text = json.dumps({**found, "tasks": [check.model_dump() for check in done.checks]}, indent=2)
        console.out([text])
    else:
        lines = [verify.format_check(check) for check in done.checks]
        if done.refused:
            lines.append(f"REFUSED: {done.refused}" + ("" if kept else "; nothing was left (--keep leaves it)"))
        console.out([*lines, *([f"{format}: {out}"] if kept else [])])
    if done.refused:
        raise typer.Exit(1)


def serve(
    model: Model,
    limits: Limits,
    host: Annotated[
        str, typer.Option(help="address to listen on; others than this machine need a token")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="port to listen on; 0 = a free one")] = 8000,
    token: Annotated[
        str | None,
        typer.Option(envvar="TASKGRAFT_TOKEN", help="what clients must send as Authorization: Bearer TOKEN"),
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="listen to other machines without a token")] = False,
    backend: Annotated[str, typer.Option(help="torch | onnx: what computes the answers")] = "torch",
    name: Annotated[str | None, typer.Option(help="what the model is called [default: MODEL's last part]")] = None,
    trial: Annotated[bool, typer.Option("--trial", help="open everything, answer one image, and stop")] = False,
    arch: Arch = None,
    labels: Labels = None,
    preprocessing: Input = None,
    parent_task: ParentTask = "parent",
) -> None:
    """Serve a model over HTTP: Open Inference Protocol V2, /predict, /metrics, and a page for people at /."""
    from taskgraft.commands import serve as job

    with console.watching() as callbacks:
        found = job.serve(
            model, host=host, port=port, token=token or None, insecure=insecure, backend=backend, name=name,
            limits=limits, trial=trial, arch=arch, labels=labels, preprocessing=preprocessing, parent_task=parent_task, callbacks=callbacks,
        )  # fmt: skip
    if trial:
        tasks = ", ".join(f"{task['name']} ({len(task['classes'])} classes)" for task in found["tasks"])
        console.out([f"{found['name']} answers {tasks}; it is ready to be served"])
