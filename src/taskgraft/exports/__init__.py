"""A model as files for other runtimes, each compared with the model in the runtime it is for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray

from taskgraft.bundle import Bundle
from taskgraft.errors import InputError, require
from taskgraft.exports import onnx_file, openvino_file, timm_folder, torch_export, triton
from taskgraft.exports.signature import ExportConfig, Runner

PRECISIONS = ("fp32", "int8-dynamic", "int8-static")
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


class Format(NamedTuple):
    """How a kind of file is written and loaded; `packages` are what it imports, `extra` installs them."""

    write: Callable[[Bundle, ExportConfig, Path, NDArray[Any] | None], None]
    load: Callable[[Path], Runner]
    packages: tuple[str, ...] = ()
    extra: str = ""
    precisions: tuple[str, ...] = ("fp32",)
    uint8: bool = True


FORMATS = {
    "onnx": Format(onnx_file.write, onnx_file.load, ONNX_PACKAGES, "export", PRECISIONS),
    "triton": Format(triton.write, triton.load, ONNX_PACKAGES, "export", PRECISIONS),
    "openvino": Format(openvino_file.write, openvino_file.load, (*ONNX_PACKAGES, "openvino"), "openvino"),
    "pt2": Format(torch_export.write, torch_export.load),
    "safetensors": Format(timm_folder.write, timm_folder.load, uint8=False),
}


def check_format(config: ExportConfig) -> Format:
    """Look up the format of an export and check that it supports the configuration.

    Raises:
        InputError: unknown format or precision, or one that the format does not support.
        MissingDependency: a package that it needs is not installed.
    """
    if config.format not in FORMATS:
        raise InputError(f"unknown --format {config.format!r}; available: {', '.join(FORMATS)}")
    if config.precision not in PRECISIONS:
        raise InputError(f"unknown --precision {config.precision!r}; available: {', '.join(PRECISIONS)}")
    file_format = FORMATS[config.format]
    if config.precision not in file_format.precisions:
        supported = ", ".join(name for name, other in FORMATS.items() if config.precision in other.precisions)
        raise InputError(f"--format {config.format} does not support --precision {config.precision}; use {supported}")
    if config.uint8 and not file_format.uint8:
        raise InputError(
            f"--format {config.format} does not support --uint8-input: it has no graph to put the normalization into"
        )
    require(file_format.extra, *file_format.packages, what=f"--format {config.format}")
    return file_format
