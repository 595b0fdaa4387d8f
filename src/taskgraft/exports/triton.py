"""A model repository that Triton and KServe load: NAME/config.pbtxt, NAME/labels_*.txt, NAME/1/model.onnx."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskgraft.bundle import Bundle
from taskgraft.exports import onnx_file
from taskgraft.exports.signature import Order, describe, outputs
from taskgraft.results.files import write_text

BATCH, DELAY = 32, 2000  # images; microseconds that Triton waits for more of them


def write(bundle: Bundle, order: Order, folder: Path, calibration: NDArray[Any] | None) -> None:
    """Write the repository below `folder`."""
    home = folder / order.name
    (home / "1").mkdir(parents=True)
    onnx_file.write(bundle, order, home / "1", calibration)
    for out in outputs(bundle):
        lines = [name.replace("\n", " ") for name in out.classes]
        write_text(home / _labels(out.name), "\n".join(lines) + "\n")
    write_text(home / "config.pbtxt", config(describe(bundle, order), order.name))


def reopen(folder: Path) -> Callable[[NDArray[Any]], list[NDArray[np.float32]]]:
    """The repository's ONNX file in onnxruntime, which is what Triton runs it with."""
    return onnx_file.opened(next(folder.glob(f"*/1/{onnx_file.FILE}")))


def config(described: dict[str, Any], name: str) -> str:
    """The text of config.pbtxt; the batch dimension is Triton's own, so shapes leave it out."""
    given = described["input"]
    shape = ", ".join(str(side) for side in given["shape"][1:])
    kind = "TYPE_UINT8" if given["type"] == "uint8" else "TYPE_FP32"
    blocks = [
        f"name: {json.dumps(name)}",
        'backend: "onnxruntime"',
        f"max_batch_size: {BATCH}",
        f'input [\n  {{ name: "{given["name"]}", data_type: {kind}, dims: [ {shape} ] }}\n]',
        "output [\n" + ",\n".join(_output(out) for out in described["outputs"]) + "\n]",
        f"dynamic_batching {{ max_queue_delay_microseconds: {DELAY} }}",
        _parameter("preprocessing", described["preprocessing"]["line"]),
        _parameter("taskgraft", json.dumps(described)),
    ]
    return "\n".join(blocks) + "\n"


def _output(out: dict[str, Any]) -> str:
    classes = out["shape"][1]
    return (
        f'  {{ name: "{out["name"]}", data_type: TYPE_FP32, dims: [ {classes} ], '
        f'label_filename: "{_labels(out["name"])}" }}'
    )


def _labels(output: str) -> str:
    return f"labels_{output.removeprefix('logits_')}.txt"


def _parameter(key: str, value: str) -> str:
    """JSON's strings, left in UTF-8, are also strings of the text format of protocol buffers."""
    quoted = json.dumps(value, ensure_ascii=False)
    return f"parameters {{ key: {json.dumps(key)} value: {{ string_value: {quoted} }} }}"
