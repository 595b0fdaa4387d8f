"""What the figures were measured on, and what the machine can do at best: the denominators of the floors."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

UNITS = ("amx_bf16", "avx512_bf16", "avx512f", "avx2", "asimd")  # what decides how fast a product can be
PACKAGES = ("taskgraft", "torch", "torchvision", "timm", "numpy", "pillow")


def describe() -> dict[str, Any]:
    """Processor, cores, memory, load before the run."""
    text = _read("/proc/cpuinfo")
    lines = text.splitlines()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    flags = next((line.split(":", 1)[1].split() for line in lines if line.startswith(("flags", "Features"))), [])
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": models[0] if models else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "units": [unit for unit in UNITS if unit in flags],
        "memory_gib": round(pages / 2**30, 1),
        "load_before": round(os.getloadavg()[0], 2),
        "system": platform.platform(terse=True),
    }


def versions() -> dict[str, str]:
    """Of Python and the packages that decide the figures."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def peaks(case: Mapping[str, Any]) -> dict[str, Any]:
    """Operations a second of a large matrix product in fp32 and bf16, bytes a second of the memory; best of a few.

    A multiplication and an addition count as two; a copy counts what it reads and what it writes.
    """
    import torch

    side, length = (256, 2**20) if case["quick"] else (2048, 2**26)
    found: dict[str, Any] = {"threads": torch.get_num_threads()}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = torch.randn(side, side).to(dtype), torch.randn(side, side).to(dtype)
        found[f"{name}_flops"] = round(2 * side**3 / _best(lambda a=a, b=b: torch.mm(a, b)))
    source, target = torch.ones(length), torch.ones(length)
    third = torch.ones(length)
    copied = 8 * length / _best(lambda: target.copy_(source))
    added = 12 * length / _best(lambda: torch.add(source, target, out=third))
    return {**found, "bytes": round(max(copied, added))}


def _best(call: Any, rounds: int = 7) -> float:
    taken = []
    for _ in range(rounds):
        begin = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begin)
    return min(taken)


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""
