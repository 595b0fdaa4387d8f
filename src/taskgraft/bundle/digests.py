"""digests.json: the SHA-256 of every file of a bundle that decides something, and of what the bundle was made from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from taskgraft.errors import CheckpointError
from taskgraft.results.files import digest, write_json

FILE = "digests.json"
# Not what people may edit (README.md), what is drawn anew from the rest (report.html), or what a run notes of itself.
NAMES = (
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
    """What digests.json holds: names below the folder, and names of inputs, each with its SHA-256."""

    model_config = ConfigDict(extra="forbid")
    inputs: dict[str, str]
    files: dict[str, str]


class Compared(NamedTuple):
    """A bundle's files beside digests.json: how many are as they were, and those that are not."""

    same: int
    changed: tuple[str, ...]
    missing: tuple[str, ...]
    unknown: tuple[str, ...]


def of(folder: Path) -> dict[str, str]:
    """The digests of a bundle's files as they are now."""
    paths = sorted(path for name in NAMES for path in folder.glob(name) if path.is_file())
    return {path.relative_to(folder).as_posix(): digest(path) for path in paths}


def write(folder: Path, inputs: Mapping[str, str]) -> None:
    """Write digests.json beside finished files."""
    write_json(folder / FILE, Digests(inputs=dict(inputs), files=of(folder)).model_dump())


def renew(folder: Path, name: str) -> None:
    """Take note of one file that was written anew by taskgraft; nothing where there is no digests.json."""
    if (folder / FILE).is_file():
        known = read(folder)
        files = {**known.files, name: digest(folder / name)}
        write_json(folder / FILE, known.model_copy(update={"files": files}).model_dump())


def read(folder: Path) -> Digests:
    """What was noted; raises TaskgraftError where there is nothing, or nothing sound."""
    try:
        return Digests.model_validate_json((folder / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder} holds no {FILE}, which every finished run has; "
            "finish it by the same train or extend with --resume, or make it anew"
        ) from error
    except (OSError, ValueError, ValidationError) as error:
        raise CheckpointError(
            f"{folder / FILE} is damaged: {str(error).splitlines()[0][:160]}; copy it again"
        ) from error


def compare(folder: Path) -> Compared:
    """The files as they are beside what was noted. Names of the noted files are looked up, never followed."""
    known, now = read(folder).files, of(folder)
    return Compared(
        sum(now.get(name) == mark for name, mark in known.items()),
        tuple(sorted(name for name, mark in known.items() if name in now and now[name] != mark)),
        tuple(sorted(known.keys() - now.keys())),
        tuple(sorted(now.keys() - known.keys())),
    )
