"""JSON that a stranger may have written, read with limits and checked before anything is built from it."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from pydantic import ValidationError
from torch import nn

from taskgraft.errors import CheckpointError

MOST = 64 * 2**20  # bytes: 100,000 class names with their rows take a tenth
LARGEST = 100_000  # of a number among a network's arguments; the widest layers have some thousands


def read_json(path: Path) -> dict[str, Any]:
    """A file that holds one JSON object; raises TaskgraftError for everything else."""
    try:
        if path.stat().st_size > MOST:
            raise CheckpointError(
                f"{path} is larger than {MOST // 2**20} MiB: that is no description of a model; "
                "give a model's own config.json"
            )
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {str(error).splitlines()[0][:160]}; copy it again") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} is damaged: it holds no JSON object; copy it again")
    return found


def told(error: ValidationError) -> str:
    """The first thing that a check found, in one line."""
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"[:200]


def create_model(where: Path, arch: str, rows: int, options: Any) -> nn.Module:
    """A timm network without weights, with arguments of its own; none of timm's, which name files and addresses.

    Raises TaskgraftError naming the argument.
    """
    if not isinstance(options, Mapping):
        raise CheckpointError(f"{where}: model_args holds no named values, so the file is damaged; copy it again")
    reserved = {*inspect.signature(timm.create_model).parameters, "num_classes"} - {"kwargs"}
    for name, value in options.items():
        items = value if isinstance(value, list) else [value]
        if name in reserved or not all(_plain(item) for item in items):
            raise CheckpointError(f"{where}: model_args may not hold {name!r}: {str(value)[:60]!r}; leave it out")
    try:
        return timm.create_model(arch, num_classes=rows, **options)
    except Exception as error:  # the arguments are a stranger's, and networks check few of them
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{where}: {arch} cannot be built with its model_args: {reason[:160]}; mend them or copy the file again"
        ) from error


def _plain(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) < 100 and not set(value) & set("/\\:")
    return value is None or isinstance(value, bool) or (isinstance(value, int | float) and abs(value) <= LARGEST)
