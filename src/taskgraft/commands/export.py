"""A model into another runtime's files, and the proof that they answer alike; nothing is left where they do not."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from taskgraft import exports
from taskgraft.bundle import Bundle, open_parent
from taskgraft.errors import InputError
from taskgraft.exports import timm_folder, verify
from taskgraft.exports.sample_images import Shown, gather
from taskgraft.exports.signature import Order, describe, plain_name
from taskgraft.exports.verify import TaskCheck
from taskgraft.results.files import write_json
from taskgraft.types import Callbacks, PathLike, as_path, as_paths
from taskgraft.version import __version__


class Exported(NamedTuple):
    """What an export left at `out`, and how it compares; `refused` says why nothing was left there."""

    out: Path
    checks: tuple[TaskCheck, ...]
    refused: str | None
    described: dict[str, Any]


def export(
    model: PathLike,
    out: PathLike,
    *,
    format: str = "onnx",
    precision: str = "fp32",
    uint8_input: bool = False,
    check: PathLike | Iterable[PathLike] = (),
    keep: bool = False,
    name: str | None = None,
    arch: str | None = None,
    labels: PathLike | None = None,
    preprocessing: str | None = None,
    parent_task: str = "parent",
    cache: PathLike | None = None,
    callbacks: Callbacks = Callbacks(),  # noqa: B008 - immutable
) -> Exported:
    """Write `model` into the new folder `out`, open it again in its own runtime, and compare on images.

    The images come from `check`, else from where the model's own record says, else they are synthetic. An export
    that differs too much is taken away again, unless `keep`. Raises TaskgraftError for bad input before anything is written.
    """
    place = Path(out)
    order = Order(format, precision, uint8_input, plain_name(name or Path(model).name, "model"))
    kind = exports.chosen(order)
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise InputError(f"{place} exists already; choose another OUT, or remove it first")
    bundle = open_parent(model, arch=arch, labels=labels, preprocessing=preprocessing, task=parent_task)
    for found in bundle.found:
        callbacks.info(f"model: {found}")
    shown = gather(
        bundle, as_paths(check), calibrate=precision == "int8-static", cache=as_path(cache), callbacks=callbacks
    )
    for note in shown.notes:
        callbacks.info(note)
    with _aside(place) as folder:
        callbacks.info(f"writing {format} ({precision})")
        calibration = shown.calibration
        fed = None if calibration is None else verify.inputs(calibration, 0, len(calibration.pixels), uint8=uint8_input)
        kind.write(bundle, order, folder, fed)
        checks = verify.compare(bundle.classifier, shown.images, kind.reopen(folder), uint8=uint8_input)
        refused = verify.refusal(checks, precision)
        same = timm_folder.bit_equal(bundle, folder, shown.images) if format == "safetensors" else None
        if same is False and not refused:
            refused = "plain timm does not give the same bits"
        described = describe(bundle, order)
        write_json(folder / "taskgraft.json", described)
        write_json(folder / "export.json", _evidence(bundle, order, shown, checks, refused, same))
        if not refused or keep:
            _settle(folder, place)
    return Exported(place, checks, refused, described)


def _evidence(
    bundle: Bundle, order: Order, shown: Shown, checks: tuple[TaskCheck, ...], refused: str | None, same: bool | None
) -> dict[str, Any]:
    """What export.json holds."""
    tolerance = verify.TOLERANCE if order.precision == "fp32" else None
    return {
        "format": order.format,
        "precision": order.precision,
        "uint8_input": order.uint8,
        "weights_sha256": bundle.digest,
        "images": {"sources": list(shown.sources), "count": len(shown.images.pixels), "synthetic": shown.synthetic},
        "batches": [*verify.BATCHES, verify.BATCH],
        "tolerance": {"relative": tolerance, "accuracy": None if tolerance else verify.LOSS},
        "tasks": [check.model_dump() for check in checks],
        "bit_equal_in_timm": same,
        "refused": refused,
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    import importlib.metadata

    names = ("torch", "timm", "onnx", "onnxscript", "onnxruntime", "openvino")
    found = {"taskgraft": __version__}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@contextmanager
def _aside(out: Path) -> Iterator[Path]:
    """A folder beside OUT to write in; whatever is left in it at the end goes."""
    folder = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error.strerror}; choose another place or free this one") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _settle(folder: Path, out: Path) -> None:
    """Give a finished folder its name."""
    if out.is_dir():
        out.rmdir()  # empty, as was checked; one that is not any more is not lost
    os.replace(folder, out)
