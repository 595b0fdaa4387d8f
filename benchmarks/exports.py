"""Every export of a bundle on its whole validation set: same answers, differences, what int8 costs, sizes, speed.

    .venv/bin/python benchmarks/exports.py BUNDLE PICTURES [PICTURES …]

PICTURES are labeled, a folder or table for each task. Sizes are of the whole folder; times are of one batch of 32 in
the export's own runtime, medians of 10, and only comparable within one run. Writes benchmarks/results/exports.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import taskgraft
from taskgraft import exports
from taskgraft.exports.verify import BATCH

KINDS = [
    ("onnx", "fp32", False),
    ("onnx", "fp32", True),
    ("onnx", "int8-dynamic", False),
    ("onnx", "int8-static", False),
    ("triton", "fp32", True),
    ("openvino", "fp32", False),
    ("pt2", "fp32", False),
    ("safetensors", "fp32", False),
]


def measured(bundle: str, kind: tuple[str, str, bool], check: list[Path], cache: Path) -> dict[str, Any]:
    form, precision, uint8 = kind
    with tempfile.TemporaryDirectory() as home:
        out, start = Path(home) / "out", time.perf_counter()
        try:
            done = taskgraft.export(
                bundle, out, format=form, precision=precision, uint8_input=uint8, check=check, keep=True, cache=cache
            )
        except taskgraft.TaskgraftError as problem:
            return {"format": form, "precision": precision, "uint8_input": uint8, "refused": str(problem)}
        seconds = time.perf_counter() - start
        shape = [BATCH, *done.described["input"]["shape"][1:]]
        runner = exports.FORMATS[form].load(out)
        batch = np.zeros(shape, np.uint8 if uint8 else np.float32)
        times = []
        for _ in range(12):
            begun = time.perf_counter()
            runner(batch)
            times.append(time.perf_counter() - begun)
        size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
        stored = json.loads((out / "export.json").read_text())
        return {
            "format": form,
            "precision": precision,
            "uint8_input": uint8,
            "refused": done.refused,
            "tasks": [check.model_dump() for check in done.checks],
            "bit_equal_in_timm": stored["bit_equal_in_timm"],
            "mebibytes": round(size / 2**20, 2),
            "milliseconds_for_32": round(1000 * statistics.median(times[2:]), 1),
            "seconds_to_export_and_check": round(seconds, 1),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--name", help="what the results are filed under [default: the bundle's method]")
    parser.add_argument("--only", nargs="+", help="formats")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "exports.json")
    args = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as cache:
        for kind in KINDS:
            if args.only and kind[0] not in args.only:
                continue
            result = measured(args.bundle, kind, args.images, Path(cache))
            print(json.dumps(result), flush=True)
            found.append(result)
    config = json.loads((Path(args.bundle) / "config.json").read_text())
    name = args.name or config["taskgraft"]["method"]
    known = json.loads(args.out.read_text()) if args.out.is_file() else {}
    machine = {"cores": os.cpu_count(), "processor": platform.processor() or platform.machine()}
    known[name] = {"architecture": config["architecture"], "machine": machine, "exports": found}
    args.out.parent.mkdir(exist_ok=True)
    args.out.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
