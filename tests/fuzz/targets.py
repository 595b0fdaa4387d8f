"""The fuzzed parts by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fuzz import bundles, framing, images, notations, requests, tables, weights
from fuzz.fuzzing import Target

TARGETS: dict[str, Callable[[Path], Target]] = {
    "notations": notations.target,
    "framing": framing.target,
    "tables": tables.tables,
    "archives": tables.archives,
    "safetensors": weights.safetensors,
    "pickles": weights.pickles,
    "images": images.target,
    "requests": requests.target,
    "bundles": bundles.target,
}
