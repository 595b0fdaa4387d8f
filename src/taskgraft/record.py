"""What a run leaves behind: `Record` (JSON), `Predictions` (NPZ), provenance. No torch in here."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from taskgraft.problem import Problem
from taskgraft.version import __version__

Kind = TypeVar("Kind", bound=BaseModel)

FORMAT = 1


class Predictions(NamedTuple):
    """A model's logits on a set of images.

    `classes` task -> class names; `logits` task -> [N, K] float32; `labels` task -> [N] int64, -1 = unlabelled;
    `ids` [N] names of the images.
    """

    classes: dict[str, tuple[str, ...]]
    softmax: str
    ids: tuple[str, ...]
    labels: dict[str, NDArray[np.int64]]
    logits: dict[str, NDArray[np.float32]]


class Interval(BaseModel):
    """A share between 0 and 1 (or a difference of two) with its 95 % interval, and the number of images."""

    model_config = ConfigDict(frozen=True)
    mean: float
    low: float
    high: float
    n: int


class Line(BaseModel):
    """One logged step; a line of `metrics.jsonl`. No clock in it: equal runs write equal files."""

    model_config = ConfigDict(frozen=True)
    step: int
    rate: float | None = None
    terms: dict[str, float] = {}
    accuracy: dict[str, float] = {}
    agreement: dict[str, float] = {}


class TaskResult(BaseModel):
    """One task before and after; None where nothing could be measured."""

    model_config = ConfigDict(frozen=True)
    name: str
    classes: tuple[str, ...]
    new: bool
    of: str = ""  # the task whose outputs these are, where the name is another: classes added to an old task
    parent: Interval | None = None
    child: Interval | None = None
    forgetting: Interval | None = None  # parent - child, paired over images
    agreement: Interval | None = None  # same answer as the parent on the new task's validation images
    test: Interval | None = None  # on a test split, scored once, which chose nothing
    identical: bool = False  # its logits are the parent's, bit for bit, on every validation image
    separate: float | None = None  # accuracy of a model trained for this task alone, where there is one


class Record(BaseModel):
    """Everything that the report says of one run."""

    model_config = ConfigDict(frozen=True)
    format: int = FORMAT
    command: str
    seed: int
    method: str
    run: dict[str, Any]
    parent: dict[str, Any]  # source, digest, architecture, tasks
    data: dict[str, Any]  # sources, counts, fingerprints, excluded
    choices: tuple[tuple[str, str, str], ...] = ()  # what was set, to what, why
    tasks: tuple[TaskResult, ...]
    score: float | None  # None where an old task could not be measured
    step: int  # the step whose weights were kept
    history: tuple[Line, ...]
    parent_history: tuple[Line, ...] = ()  # the parent's own training, where its bundle has it
    parameters: dict[str, int]
    arithmetic: dict[str, int] = {}  # operations of one forward pass on one image, of child and parent
    latency: dict[str, float] = {}  # median seconds of one forward pass on one image, of child and parent
    seconds: dict[str, float]
    versions: dict[str, str]
    plain: bool = True  # whether plain timm can load the model
    notes: tuple[str, ...] = ()
    asked: str = ""  # the command that asks for just this run, whatever started it; the next ones are made from it


class Arrangement(BaseModel):
    """One method with its settings, and its runs over seeds."""

    model_config = ConfigDict(frozen=True)
    label: str
    method: str
    run: dict[str, Any]
    records: tuple[Record, ...]
    folders: tuple[str, ...] = ()


class Comparison(BaseModel):
    """Several arrangements from one parent on one data set."""

    model_config = ConfigDict(frozen=True)
    format: int = FORMAT
    command: str
    title: str
    arrangements: tuple[Arrangement, ...]
    separate: dict[str, tuple[float, ...]] = {}  # new task alone: validation accuracy of each seed
    failures: tuple[tuple[str, str], ...] = ()  # label, reason
    notes: tuple[str, ...] = ()


class Clock(NamedTuple):
    """Seconds by part of a run; each lap is a new clock."""

    last: float
    laps: dict[str, float]

    @classmethod
    def start(cls) -> Clock:
        """Begin to count."""
        return cls(time.perf_counter(), {})

    def lap(self, name: str) -> Clock:
        """Say what the time since the last lap went into."""
        now = time.perf_counter()
        return Clock(now, {**self.laps, name: round(now - self.last, 2)})

    def seconds(self) -> dict[str, float]:
        """The laps and their sum."""
        return {**self.laps, "total": round(sum(self.laps.values()), 2)}


def parsed(kind: type[Kind], path: Path) -> Kind:
    """What a file holds, as one of the models above; raises Problem where it is damaged."""
    try:
        return kind.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # of which pydantic's own is one
        raise Problem(f"{path} is damaged: {str(error).splitlines()[0][:160]}; copy it again") from error


def save_predictions(path: Path, sets: Mapping[str, Predictions]) -> None:
    """Write named predictions to one compressed NPZ, atomically; no pickle."""
    arrays: dict[str, NDArray[Any]] = {}
    for name, predictions in sets.items():
        arrays[f"{name}|meta"] = np.array(
            json.dumps({"classes": predictions.classes, "softmax": predictions.softmax, "ids": predictions.ids})
        )
        arrays.update({f"{name}|labels|{task}": value for task, value in predictions.labels.items()})
        arrays.update({f"{name}|logits|{task}": value for task, value in predictions.logits.items()})
    with atomic(path) as aside, aside.open("wb") as file:
        np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]


def load_predictions(path: Path) -> dict[str, Predictions]:
    """Read what `save_predictions` wrote; raises Problem for a file that is damaged, or something else."""
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            return _sets(dict(file))
    except Exception as error:  # archives and arrays of strangers raise anything
        raise Problem(f"{path} is damaged: {type(error).__name__}: {str(error)[:160]}; copy it again") from error


def _sets(arrays: Mapping[str, NDArray[Any]]) -> dict[str, Predictions]:
    sets = {}
    for name in [key.split("|")[0] for key in arrays if key.endswith("|meta")]:
        meta = json.loads(str(arrays[f"{name}|meta"]))
        sets[name] = Predictions(
            {task: tuple(classes) for task, classes in meta["classes"].items()},
            meta["softmax"],
            tuple(meta["ids"]),
            _part(arrays, f"{name}|labels|"),
            _part(arrays, f"{name}|logits|"),
        )
    return sets


def _part(arrays: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Give a path to write to; it is flushed and renamed over `path` when the block ends well, else removed.

    A reader sees the old file or the new one, never a half.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield aside
        os.chmod(aside, _usual_mode(aside))
        flush(aside)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    flush(path.parent)


def _usual_mode(beside: Path) -> int:
    """What the user's umask gives a new file; safetensors writes files that nobody else may read."""
    probe = beside.with_name(f"{beside.name}.mode")
    handle = os.open(probe, os.O_CREAT | os.O_WRONLY, 0o666)
    try:
        return os.fstat(handle).st_mode & 0o777
    finally:
        os.close(handle)
        probe.unlink()


def flush(path: Path) -> None:
    """Force a file or folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically; what is no text in it, such as bytes of a file's name, is escaped."""
    with atomic(path) as aside:
        aside.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_asked(path: Path, text: str) -> None:
    """Write a text file where the user asked for it; raises Problem where that cannot be."""
    try:
        write_text(path, text)
    except OSError as error:
        raise Problem(f"{path} cannot be written: {error.strerror}; choose another place") from error


def shown(name: str) -> str:
    """A file name as text that can be written: bytes that are no UTF-8 are escaped."""
    return name.encode("utf-8", "backslashreplace").decode()


def write_json(path: Path, value: object) -> None:
    """Write JSON atomically, readable by people."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(parts: Iterable[str]) -> str:
    """SHA-256 over a sequence of strings, order included."""
    total = hashlib.sha256()
    for part in parts:
        total.update(part.encode("utf-8", "surrogateescape") + b"\n")
    return total.hexdigest()


def versions() -> dict[str, str]:
    """Versions of what decides a result: Python, the libraries, the processor's name."""
    names = ("torch", "torchvision", "timm", "numpy", "pillow", "safetensors")
    found = {"taskgraft": __version__, **{name: importlib.metadata.version(name) for name in names}}
    return {"python": platform.python_version(), **found, "machine": platform.machine()}
