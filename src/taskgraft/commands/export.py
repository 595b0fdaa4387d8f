"""Export a model to another runtime and compare it there; nothing is left where the difference is too large."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from taskgraft import exports
from taskgraft.bundle import open_parent
from taskgraft.exports import timm_folder, verify
from taskgraft.exports.signature import ExportConfig, clean_name, describe
from taskgraft.results.files import publish_folder, require_absent, temporary_folder, write_json
from taskgraft.types import Callbacks, PathLike, as_path, as_paths
from taskgraft.version import __version__

PACKAGES = ("torch", "timm", "onnx", "onnxscript", "onnxruntime", "openvino")  # whose versions go into export.json


class ExportResult(NamedTuple):
    """Result of an export.

    Attributes:
        out: the folder.
        checks: comparison with the model, one for each task.
        refused: the unacceptable difference for which nothing was left at `out` (unless `keep`); None if all is well.
        description: the content of taskgraft.json.
    """

    out: Path
    checks: tuple[verify.TaskCheck, ...]
    refused: str | None
    description: dict[str, Any]


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
    parent_task: str | None = None,
    cache: PathLike | None = None,
    callbacks: Callbacks = Callbacks(),  # noqa: B008 - immutable
) -> ExportResult:
    """Export a model, load the files in their own runtime, and compare the predictions.

    Args:
        model: a bundle, or any other model that `extend` accepts.
        out: folder to write; must not exist or be empty.
        format: "onnx", "triton", "openvino", "pt2" or "safetensors".
        precision: "fp32", "int8-dynamic" or "int8-static" (onnx and triton).
        uint8_input: take pixels [B, S, S, C] uint8 and normalize them in the graph.
        check: labeled images to compare on; by default those of the model's record, else synthetic ones.
        keep: leave the files even where the difference is too large.
        name: name of the model in a Triton repository; by default the last part of `model`.
        arch: timm architecture of a model that is not a bundle.
        labels: its class names.
        preprocessing: its preprocessing.
        parent_task: name for its task; None = that of its file.
        cache: folder of the pixel cache.
        callbacks: receives progress and notes.

    Returns:
        The comparison, and why the export was refused if it was.

    Raises:
        InputError: an option that the format does not support, or `out` is not empty.
        CheckpointError: the model cannot be opened.
        DataError: the images cannot be used.
        MissingDependency: a package that the format needs is not installed.
    """
    out = Path(out)
    config = ExportConfig(format, precision, uint8_input, clean_name(name or Path(model).name, "model"))
    file_format = exports.check_format(config)
    require_absent(out)
    bundle = open_parent(model, arch=arch, labels=labels, preprocessing=preprocessing, task=parent_task)
    for note in bundle.notes:
        callbacks.info(f"model: {note}")
    samples = verify.collect_images(
        bundle, as_paths(check), calibrate=precision == "int8-static", cache=as_path(cache), callbacks=callbacks
    )
    for note in samples.notes:
        callbacks.info(note)
    calibration = None
    if samples.calibration is not None:
        count = len(samples.calibration.pixels)
        calibration = verify.prepare_inputs(samples.calibration, 0, count, uint8=uint8_input)
    with temporary_folder(out) as folder:
        callbacks.info(f"writing {format} ({precision})")
        file_format.write(bundle, config, folder, calibration)
        checks = verify.compare(bundle.classifier, samples.images, file_format.load(folder), uint8=uint8_input)
        refused = verify.find_unacceptable(checks, precision)
        bit_identical = None
        if format == "safetensors":
            bit_identical = timm_folder.is_bit_identical(bundle, folder, samples.images)
            if not bit_identical and not refused:
                refused = "the result in plain timm is not bit-identical"
        description = describe(bundle, config)
        write_json(folder / "taskgraft.json", description)
        is_fp32 = precision == "fp32"
        comparison = {
            "format": format,
            "precision": precision,
            "uint8_input": uint8_input,
            "weights_sha256": bundle.digest,
            "images": {
                "sources": [str(path) for path in samples.sources],
                "count": len(samples.images.pixels),
                "synthetic": not samples.sources,
            },
            "batches": [*verify.FIRST_BATCHES, verify.BATCH],
            "tolerance": {
                "relative": verify.TOLERANCE if is_fp32 else None,
                "accuracy": None if is_fp32 else verify.MAX_ACCURACY_LOSS,
            },
            "tasks": [check.model_dump() for check in checks],
            "bit_equal_in_timm": bit_identical,
            "refused": refused,
            "versions": _package_versions(),
        }
        write_json(folder / "export.json", comparison)
        if not refused or keep:
            publish_folder(folder, out)
    return ExportResult(out, checks, refused, description)


def _package_versions() -> dict[str, str]:
    versions = {"taskgraft": __version__}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions
