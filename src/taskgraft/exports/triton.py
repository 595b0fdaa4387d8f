"""A model repository for Triton and KServe: NAME/config.pbtxt, NAME/labels_*.txt, NAME/1/model.onnx."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from taskgraft.bundle import Bundle
from taskgraft.exports import onnx_file
from taskgraft.exports.signature import ExportConfig, Runner, describe
from taskgraft.results.files import write_text

MAX_BATCH, MAX_DELAY = 32, 2000  # images; microseconds that Triton waits for more of them


def write(bundle: Bundle, config: ExportConfig, folder: Path, calibration: NDArray[Any] | None = None) -> None:
    """Write the repository into `folder`; `calibration` is that of `onnx_file.write`."""
    repository = folder / config.name
    (repository / "1").mkdir(parents=True)
    onnx_file.write(bundle, config, repository / "1", calibration)
    description = describe(bundle, config)
    for output in description["outputs"]:
        labels = [name.replace("\n", " ") for name in output["classes"]]
        write_text(repository / _labels_file(output), "\n".join(labels) + "\n")
    write_text(repository / "config.pbtxt", format_config(description, config.name))


def load(folder: Path) -> Runner:
    """Open the repository's ONNX file in ONNX Runtime, as Triton does."""
    return onnx_file.load(next(folder.glob(f"*/1/{onnx_file.FILE}")).parent)


def format_config(description: dict[str, Any], name: str) -> str:
    """The content of config.pbtxt; its shapes omit the batch dimension, which Triton adds."""
    tensor = description["input"]
    shape = ", ".join(map(str, tensor["shape"][1:]))
    datatype = "TYPE_UINT8" if tensor["type"] == "uint8" else "TYPE_FP32"
    outputs = ",\n".join(
        f'  {{ name: "{output["name"]}", data_type: TYPE_FP32, dims: [ {output["shape"][1]} ], '
        f'label_filename: "{_labels_file(output)}" }}'
        for output in description["outputs"]
    )
    return "\n".join([
        f"name: {json.dumps(name)}",
        'backend: "onnxruntime"',
        f"max_batch_size: {MAX_BATCH}",
        f'input [\n  {{ name: "{tensor["name"]}", data_type: {datatype}, dims: [ {shape} ] }}\n]',
        f"output [\n{outputs}\n]",
        f"dynamic_batching {{ max_queue_delay_microseconds: {MAX_DELAY} }}",
        _format_parameter("preprocessing", description["preprocessing"]["line"]),
        _format_parameter("taskgraft", json.dumps(description)),
        "",
    ])  # fmt: skip


def _labels_file(output: dict[str, Any]) -> str:
    return f"labels_{output['name'].removeprefix('logits_')}.txt"


def _format_parameter(key: str, value: str) -> str:
    """JSON strings in UTF-8 are also valid in the text format of protocol buffers."""
    quoted = json.dumps(value, ensure_ascii=False)
    return f"parameters {{ key: {json.dumps(key)} value: {{ string_value: {quoted} }} }}"
