"""Commands that inspect images, results, bundles and the machine: check, report, sign, verify, methods, doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from taskgraft.cli import console, flags
from taskgraft.errors import InputError


def check(
    data: flags.Data,
    /,
    *,
    task: Annotated[str, Parameter(group=flags.DATA)] = "label",
    group: Annotated[str | None, Parameter(group=flags.DATA)] = None,
    min_images: Annotated[int, Parameter(group=flags.DATA, validator=Number(gte=0))] = 0,
    drop_leaks: Annotated[bool, Parameter(group=flags.OUTPUT)] = False,
    write_manifest: Annotated[Path | None, Parameter(group=flags.OUTPUT)] = None,
    html: Annotated[Path | None, Parameter(group=flags.OUTPUT)] = None,
    as_json: flags.Json = False,
    workers: flags.Workers = 0,
    against: Annotated[str | None, Parameter(group=flags.MODEL)] = None,
    arch: Annotated[str | None, Parameter(group=flags.MODEL)] = None,
    labels: Annotated[Path | None, Parameter(group=flags.MODEL)] = None,
) -> int:
    """Check a dataset for duplicates, leaks and corrupt files.

    Read-only. Exits 1 if problems are found.

    Args:
        task: Label column of a table
        group: Regular expression; classes with equal groups are merged
        min_images: Drop classes with fewer training images
        drop_leaks: Leave training images that are also in val or test out of --write-manifest
        write_manifest: Write the remaining images as a CSV table
        html: Write a page with the findings, images that look alike, and a contact sheet
        against: Model whose class names and input size are compared with the dataset
        arch: timm architecture of a weights file
        labels: Class names of a weights file that has none: one per line in index order, JSON, YAML or CSV
    """
    from taskgraft.commands.check import check

    with flags.on_hardware(flags.DeviceOptions(workers=workers)), console.show_progress() as callbacks:
        result = check(
            data, task, group=group, min_images=min_images, manifest=write_manifest, drop_leaks=drop_leaks,
            against=against, arch=arch, labels=labels, html=html, callbacks=callbacks,
        )  # fmt: skip
    lines = [*result.pop("lines"), *([f"page: {html}"] if html else [])]
    if as_json:
        console.print_json(result)
    else:
        console.print_results(*lines)
    return 1 if result["problems"] else 0


def report(
    folder: Annotated[Path, Parameter(name="OUT", help="OUT folder of train, extend, compare or tune")], /
) -> None:
    """Rewrite the report of a finished run, comparison or search."""
    from taskgraft import report
    from taskgraft.results.files import write_text
    from taskgraft.results.predictions import load_predictions
    from taskgraft.results.record import Comparison, Record, load_record
    from taskgraft.results.search import SearchResult

    if (folder / "comparison.json").is_file():
        comparison = load_record(Comparison, folder / "comparison.json")
        report.write_comparison_report(comparison, folder)
        summary = report.summarize_comparison(comparison).to_lines()
    elif (folder / "search.json").is_file():
        search = load_record(SearchResult, folder / "search.json")
        report.write_search_report(search, folder)
        summary = report.summarize_search(search)
    elif (folder / "record.json").is_file():
        record = load_record(Record, folder / "record.json")
        page = report.render_run(record, load_predictions(folder / "predictions.npz"), report.load_thumbnails(folder))
        write_text(folder / "report.html", page)
        summary = report.summarize_run(record).to_lines()
    else:
        raise InputError(f"{folder} contains no finished run, comparison or search; give the OUT folder of one")
    console.print_results(*summary, f"report: {folder}/report.html")


def sign(
    bundle: flags.Bundle,
    /,
    *,
    key: Annotated[Path, Parameter(help="Private key: Ed25519, in PEM")],
    new_key: bool = False,
    password: Annotated[str | None, Parameter(env_var="TASKGRAFT_KEY_PASSWORD")] = None,
) -> None:
    """Sign a bundle, so that others can verify who made it.

    Writes signature.json into the bundle. Whatever changes the bundle later, such as calibrate, needs a new signature.

    Args:
        new_key: Create the key first, and the public key as KEY.pub
        password: Password of an encrypted key; a new key is encrypted with it
    """
    from taskgraft.commands.sign import sign

    fingerprint = sign(bundle, key, new_key=new_key, password=password or None)
    created = [f"keys: {key} (keep it secret) and {key}.pub (give it to those who verify)"] if new_key else []
    console.print_results(*created, f"{bundle}: signed by {fingerprint}")


def verify(
    bundle: flags.Bundle,
    /,
    *,
    key: Annotated[Path, Parameter(help="Public key of those who may have signed it, in PEM")],
) -> None:
    """Verify the signature of a bundle.

    Exits 2 if it is not signed, signed by another key, or altered since. `evaluate --verify` runs the model as well.
    """
    from taskgraft.commands.sign import verify_signature

    fingerprint = verify_signature(bundle, key)
    console.print_results(f"{bundle}: signed by {fingerprint}, unchanged")


def methods(name: Annotated[str | None, Parameter(help="Show the settings of this method")] = None, /) -> None:
    """List the methods, or the settings of one."""
    from taskgraft.config import options
    from taskgraft.methods.notation import parse
    from taskgraft.methods.presets import EXAMPLE
    from taskgraft.methods.registry import METHODS

    if name is None:
        width = max(map(len, METHODS))
        lines = [f"{key:<{width}}  {(kind.__doc__ or '').splitlines()[0]}" for key, kind in METHODS.items()]
        lines += ["", f"Combine methods with +, and give settings in parentheses: --method {EXAMPLE!r}"]
        console.print_results(*lines)
        return
    settings = type(next(iter(parse(name).values())))
    lines = [" ".join((settings.__doc__ or "").split()), ""]
    for key, option in options(settings).items():
        values = option.range.rule() if option.range else str(option.kind).replace("typing.Literal", "one of ")
        lines.append(f"  {key} = {option.default}   {values}")
    console.print_results(*lines)


def doctor(*, as_json: flags.Json = False) -> int:
    """Check the installation.

    Looks at versions, torch with torchvision, GPU, disk space and extras. Exits 1 if anything required is broken.
    """
    from taskgraft.commands.doctor import doctor

    findings = doctor()
    failed = any(finding.status == "error" for finding in findings)
    if as_json:
        console.print_json({"failed": failed, "findings": [finding._asdict() for finding in findings]})
        return int(failed)
    width = max(len(finding.name) for finding in findings)
    marks = {"ok": "  ", "warning": "- ", "error": "! "}
    console.print_results(
        *(f"{marks[finding.status]}{finding.name:<{width}}  {finding.value}" for finding in findings),
        *(f"{marks[finding.status]}{finding.name}: {finding.remedy}" for finding in findings if finding.remedy),
        "problems found, see the lines with !" if failed else "all checks passed",
    )
    return int(failed)
