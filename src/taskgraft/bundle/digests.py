"""digests.json: the SHA-256 of every file of a bundle that matters, and of what the bundle was made from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from taskgraft.errors import CheckpointError, first_line
from taskgraft.results.files import digest, write_json

FILE = "digests.json"
# without what people may edit (README.md), what is generated from the rest (report.html), and the run's own notes
PATTERNS = (
    "config.json",
    "model.safetensors",
    "memory.safetensors",
    "record.json",
    "predictions.npz",
    "metrics.jsonl",
    "split.csv",
    "excluded.csv",
    "cards/*.json",
)


class Digests(BaseModel):
    """The contents of digests.json: SHA-256 by name of an input, and by path of a file below the folder."""

    model_config = ConfigDict(extra="forbid")
    inputs: dict[str, str]
    files: dict[str, str]


class Comparison(NamedTuple):
    """A bundle's files compared with its digests.json: how many are unchanged, and the paths of the others."""

    unchanged: int
    changed: tuple[str, ...]
    missing: tuple[str, ...]
    added: tuple[str, ...]


def compute(folder: Path) -> dict[str, str]:
    """Compute the digests of a bundle's files: path below the folder -> SHA-256."""
    paths = sorted(path for pattern in PATTERNS for path in folder.glob(pattern) if path.is_file())
    return {path.relative_to(folder).as_posix(): digest(path) for path in paths}


def write(folder: Path, inputs: Mapping[str, str]) -> None:
    """Write digests.json for a folder whose files are final; `inputs` are the digests of what it was made from."""
    write_json(folder / FILE, Digests(inputs=dict(inputs), files=compute(folder)).model_dump())


def update(folder: Path, name: str) -> None:
    """Update the entry of one file that taskgraft has rewritten; does nothing without a digests.json."""
    if (folder / FILE).is_file():
        stored = read(folder)
        files = {**stored.files, name: digest(folder / name)}
        write_json(folder / FILE, stored.model_copy(update={"files": files}).model_dump())


def read(folder: Path) -> Digests:
    """Read digests.json.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    try:
        return Digests.model_validate_json((folder / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder} has no {FILE}, which every finished run has; "
            "finish the run with --resume, or run the command again"
        ) from error
    except (OSError, ValueError, ValidationError) as error:
        raise CheckpointError(f"{folder / FILE} is damaged: {first_line(error)}; copy it again") from error


def compare(folder: Path) -> Comparison:
    """Compare a bundle's files with its digests.json. The paths in it are looked up, never opened."""
    stored, current = read(folder).files, compute(folder)
    return Comparison(
        sum(current.get(name) == value for name, value in stored.items()),
        tuple(sorted(name for name, value in stored.items() if name in current and current[name] != value)),
        tuple(sorted(stored.keys() - current.keys())),
        tuple(sorted(current.keys() - stored.keys())),
    )
