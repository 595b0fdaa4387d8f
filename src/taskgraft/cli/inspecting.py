"""Commands that look: evaluate, report, methods, check, doctor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from taskgraft.cli import console
from taskgraft.cli.config_file import config
from taskgraft.cli.options import Arch, Cache, Input, Labels, ParentTask, cache_folder


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command(epilog="Example: taskgraft evaluate demo-run/alice demo-run/data/makes")(evaluate)
    app.command(epilog="Example: taskgraft report demo-run/alice")(report)
    app.command(epilog="Example: taskgraft methods ewc")(methods)
    app.command(
        epilog="Example: taskgraft check demo-run/data/makes --group '^(.)' --write-manifest demo-run/data/initials.csv"
    )(check)
    app.command(epilog="Example: taskgraft doctor")(doctor)
    app.command(epilog="Example: taskgraft config extend")(config)


def evaluate(
    model: Annotated[str, typer.Argument(help="a bundle, or any parent that `extend` opens")],
    data: Annotated[
        Path | None,
        typer.Argument(help="labeled images; their validation part where there is one [--verify: those of the record]"),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="task that the labels are of [default: found by its classes]")
    ] = None,
    arch: Arch = None,
    labels: Labels = None,
    preprocessing: Input = None,
    parent_task: ParentTask = "parent",
    cache: Cache = "",
    verify: Annotated[
        bool, typer.Option("--verify", help="instead: is a bundle still what its digests, record and predictions say?")
    ] = False,
    html: Annotated[Path | None, typer.Option(help="write what was found as a page, with images")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Measure a model on labeled images: accuracy with its interval, calibration, the worst classes."""
    with console.importing():
        from taskgraft.commands import evaluate as job
    from taskgraft.errors import InputError

    if verify and html:
        raise InputError("--verify writes no page; leave --html out")
    if verify:
        _verify(model, data, cache, as_json)
        return
    if data is None:
        raise InputError("evaluate needs DATA, labeled images; without them there is only --verify")
    with console.watching() as callbacks:
        bundle_options = {"arch": arch, "labels": labels, "preprocessing": preprocessing, "parent_task": parent_task}
        found = job.evaluate(
            model, data, task=task, html=html, cache=cache_folder(cache), callbacks=callbacks, **bundle_options
        )
    if as_json:
        console.out([json.dumps(found, indent=2, ensure_ascii=False)])
        return
    lines = [
        f"{found['task']}: {found['accuracy']:.1%} of {found['images']} images "
        f"(95 % interval {found['low']:.1%} to {found['high']:.1%}), calibration error {found['calibration_error']:.3f}"
    ]
    lines += [f"  worst: {name} {share:.0%} of {count}" for name, share, count in found["worst"]]
    lines += [f"page: {html}"] if html else []
    console.out(lines)


def _verify(model: str, data: Path | None, cache: str, as_json: bool) -> None:
    from taskgraft.commands import verify as job

    with console.watching() as callbacks:
        found = job.verify(model, data, cache=cache_folder(cache), callbacks=callbacks)
    lines = found.pop("lines")
    console.out([json.dumps(found, indent=2, ensure_ascii=False)] if as_json else lines)
    if not found["sound"]:
        raise typer.Exit(1)


def report(
    config: Annotated[Path, typer.Argument(help="OUT folder of train, extend, compare or tune")],
) -> None:
    """Write the report of a finished run, comparison or search again; needs neither the images nor torch."""
    from taskgraft import report as pages
    from taskgraft.errors import InputError
    from taskgraft.results.files import write_text
    from taskgraft.results.predictions import load_predictions
    from taskgraft.results.record import Comparison, Record, parsed
    from taskgraft.results.search import SearchResult

    if (config / "comparison.json").is_file():
        comparison = parsed(Comparison, config / "comparison.json")
        write_text(config / "table.md", pages.format_comparison_table(comparison))
        pages.write_figures(comparison, config)
        write_text(config / "report.html", pages.render_comparison(comparison))
        console.out([*pages.summarize_comparison(comparison).to_lines(), f"report: {config}/report.html"])
    elif (config / "search.json").is_file():
        found = parsed(SearchResult, config / "search.json")
        pages.write_search_report(found, config)
        console.out([*pages.summarize_search(found), f"report: {config}/report.html"])
    elif (config / "record.json").is_file():
        record = parsed(Record, config / "record.json")
        page = pages.render_run(record, load_predictions(config / "predictions.npz"), pages.load_thumbnails(config))
        write_text(config / "report.html", page)
        console.out([*pages.summarize_run(record).to_lines(), f"report: {config}/report.html"])
    else:
        raise InputError(f"{config} holds no finished run, comparison or search; give the OUT folder of one")


def methods(
    name: Annotated[str | None, typer.Argument(help="one method, for its settings")] = None,
) -> None:
    """List the methods, or one with its settings and their values."""
    from taskgraft.config import options
    from taskgraft.methods.notation import parse
    from taskgraft.methods.presets import EXAMPLE
    from taskgraft.methods.registry import METHODS

    if name is None:
        width = max(map(len, METHODS))
        lines = [f"{key:<{width}}  {(kind.__doc__ or '').splitlines()[0]}" for key, kind in METHODS.items()]
        console.out([*lines, "", f"Join them with +, set them in brackets: --method {EXAMPLE!r}"])
        return
    settings = type(next(iter(parse(name).values())))
    lines = [" ".join((settings.__doc__ or "").split()), ""]
    for key, option in options(settings).items():
        values = option.extent.rule() if option.extent else str(option.kind).replace("typing.Literal", "one of ")
        lines.append(f"  {key} = {option.default}   {values}")
    console.out(lines)


def check(
    data: Annotated[Path, typer.Argument(help="images: folder per class, train/ and val/ above it, or a CSV table")],
    task: Annotated[str, typer.Option(help="name of the label column of a table")] = "label",
    against: Annotated[
        str | None, typer.Option(help="a model: compare its class names and the size of its input with the images")
    ] = None,
    group: Annotated[str | None, typer.Option(help="regular expression; class names merge by its groups")] = None,
    min_images: Annotated[int, typer.Option(min=0, help="drop classes with fewer training images")] = 0,
    write_manifest: Annotated[Path | None, typer.Option(help="write what remains as a CSV table")] = None,
    drop_leaks: Annotated[
        bool,
        typer.Option("--drop-leaks", help="of --write-manifest: without training images that stand in val or test too"),
    ] = False,
    html: Annotated[Path | None, typer.Option(help="write what was found as a page")] = None,
    arch: Arch = None,
    labels: Labels = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Look at images without training: classes, splits, doubles, damaged files. Changes none; exit 1 if wanting."""
    from taskgraft.commands import check as job

    with console.watching() as callbacks:
        found = job.check(
            data, task, group=group, min_images=min_images, manifest=write_manifest, drop_leaks=drop_leaks,
            against=against, arch=arch, labels=labels, html=html, callbacks=callbacks,
        )  # fmt: skip
    lines = found.pop("lines")
    console.out([json.dumps(found, indent=2, ensure_ascii=False)] if as_json else lines)
    if html and not as_json:
        console.out([f"page: {html}"])
    if found["wanting"]:
        raise typer.Exit(1)


def doctor(as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False) -> None:
    """Look at this machine: versions, torch beside torchvision, GPU, disk, extras. Exit 1 if something blocks."""
    from taskgraft.commands import doctor as job

    found = job.doctor()
    blocked = any(one.state == "blocks" for one in found)
    if as_json:
        console.out([json.dumps({"blocked": blocked, "findings": [one._asdict() for one in found]}, indent=2)])
    else:
        width = max(len(one.name) for one in found)
        marks = {"good": "  ", "note": "- ", "blocks": "! "}
        lines = [f"{marks[one.state]}{one.name:<{width}}  {one.value}" for one in found]
        lines += [f"{marks[one.state]}{one.name}: {one.remedy}" for one in found if one.remedy]
        console.out([*lines, "something blocks: see the lines with !" if blocked else "nothing blocks"])
    if blocked:
        raise typer.Exit(1)
