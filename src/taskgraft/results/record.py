"""The record of a run or a comparison (JSON), and the versions that decide a result. No torch in here."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict

from taskgraft.errors import InputError
from taskgraft.version import __version__

Kind = TypeVar("Kind", bound=BaseModel)

FORMAT = 1


class Interval(BaseModel):
    """A fraction between 0 and 1 (or a difference of two) with its 95 % interval, and the number of images."""

    model_config = ConfigDict(frozen=True)
    mean: float
    low: float
    high: float
    n: int


class StepMetrics(BaseModel):
    """One logged step; a line of `metrics.jsonl`. No clock in it: equal runs write equal files."""

    model_config = ConfigDict(frozen=True)
    step: int
    lr: float | None = None
    terms: dict[str, float] = {}
    accuracy: dict[str, float] = {}
    agreement: dict[str, float] = {}


class TaskResult(BaseModel):
    """One task before and after; None where nothing could be measured."""

    model_config = ConfigDict(frozen=True)
    name: str
    classes: tuple[str, ...]
    new: bool
    added_to: str = ""  # the old task that these classes were added to; empty for a task of its own
    refreshes: str = ""  # the old task that these new images are of; empty for a new task
    parent: Interval | None = None
    child: Interval | None = None
    forgetting: Interval | None = None  # parent - child, paired over images
    negative_flips: Interval | None = None  # right in the parent and wrong in the child
    agreement: Interval | None = None  # same class as the parent on the new task's validation images
    test: Interval | None = None  # on a test split, used once and not for selection
    identical: bool = False  # its logits are the parent's, bit for bit, on every validation image
    chance: float | None = None  # accuracy of always predicting the most frequent class, on the child's images
    majority: str = ""  # that class
    balanced: float | None = None  # the child's mean accuracy over classes, where these are uneven
    macro_f1: float | None = None  # of the child, over classes
    top_5: float | None = None  # how often the right class is among the child's five highest, where there are many
    never_predicted: tuple[str, ...] = ()  # classes with images that the child predicts for none
    separate: float | None = None  # accuracy of a model trained for this task alone, where there is one


class Record(BaseModel):
    """Everything that the report says about a run."""

    model_config = ConfigDict(frozen=True)
    format: int = FORMAT
    command: str
    seed: int
    method: str
    config: dict[str, Any]
    parent: dict[str, Any]  # source, digest, architecture, tasks
    data: dict[str, Any]  # sources, counts, fingerprints, excluded
    settings: tuple[tuple[str, str, str], ...] = ()  # (name, value, reason) of each setting
    tasks: tuple[TaskResult, ...]
    score: float | None  # None where an old task could not be measured
    step: int  # the step whose weights were kept
    history: tuple[StepMetrics, ...]
    parent_history: tuple[StepMetrics, ...] = ()  # the parent's own training, where its bundle has it
    parameters: dict[str, int]
    flops: dict[str, int] = {}  # operations of one forward pass on one image, of child and parent
    latency: dict[str, float] = {}  # median seconds of one forward pass on one image, of child and parent
    seconds: dict[str, float]
    versions: dict[str, str]
    baselines: dict[str, dict[str, float]] = {}  # of a merge: by what the weights alone give, accuracy by task
    architecture: str = ""  # of the model that was made; empty in records of before
    one_backbone: bool = True  # whether the model is linear layers on one backbone, which plain timm can load
    notes: tuple[str, ...] = ()
    reproduce_command: str = ""  # the train or extend command that reproduces this run, whatever started it


class VariantResult(BaseModel):
    """One method with its settings, and its runs over seeds."""

    model_config = ConfigDict(frozen=True)
    label: str
    method: str
    config: dict[str, Any]
    records: tuple[Record, ...]
    folders: tuple[str, ...] = ()


class Comparison(BaseModel):
    """Several configurations of an extension from one parent on one data set."""

    model_config = ConfigDict(frozen=True)
    format: int = FORMAT
    command: str
    title: str
    variants: tuple[VariantResult, ...]
    separate: dict[str, tuple[float, ...]] = {}  # single-task models: validation accuracy of each seed
    failures: tuple[tuple[str, str], ...] = ()  # label, reason
    notes: tuple[str, ...] = ()
    reproduce_command: str = ""  # the compare command for the same methods, whatever started it


class Stopwatch:
    """Measures the seconds of each part of a run."""

    def __init__(self) -> None:
        """Start."""
        self._last = time.perf_counter()
        self._laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """End a part.

        Args:
            name: What the time since the last lap was used for.
        """
        now = time.perf_counter()
        self._laps[name], self._last = round(now - self._last, 2), now

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each part, and their sum as "total"."""
        return {**self._laps, "total": round(sum(self._laps.values()), 2)}


def load_record(kind: type[Kind], path: Path) -> Kind:
    """Read a file that holds one of the models above.

    Args:
        kind: The model's class.
        path: A JSON file.

    Returns:
        The model.

    Raises:
        InputError: The file is missing or damaged.
    """
    try:
        return kind.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # pydantic's ValidationError is a ValueError
        raise InputError(f"{path} is damaged: {str(error).splitlines()[0][:160]}; copy it again") from error


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that decide a result, and the kind of processor."""
    names = ("torch", "torchvision", "timm", "numpy", "pillow", "safetensors")
    packages = {"taskgraft": __version__, **{name: importlib.metadata.version(name) for name in names}}
    return {"python": platform.python_version(), **packages, "machine": platform.machine()}
