"""A model's logits on sets of images, as NPZ. No torch in here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from taskgraft.errors import InputError
from taskgraft.results.files import atomic


class Predictions(NamedTuple):
    """A model's logits on a set of images.

    Attributes:
        classes: Task name -> class names.
        softmax: "per-task" or "joint".
        ids: [N] names of the images.
        labels: Task name -> [N] int64, -1 = not labeled.
        logits: Task name -> [N, K] float32.
    """

    classes: dict[str, tuple[str, ...]]
    softmax: str
    ids: tuple[str, ...]
    labels: dict[str, NDArray[np.int64]]
    logits: dict[str, NDArray[np.float32]]


def save_predictions(path: Path, sets: Mapping[str, Predictions]) -> None:
    """Write predictions to one compressed NPZ, atomically and without pickle.

    Args:
        path: The file.
        sets: Predictions by set of images.
    """
    arrays: dict[str, NDArray[Any]] = {}
    for name, predictions in sets.items():
        arrays[f"{name}|meta"] = np.array(
            json.dumps({"classes": predictions.classes, "softmax": predictions.softmax, "ids": predictions.ids})
        )
        arrays.update({f"{name}|labels|{task}": value for task, value in predictions.labels.items()})
        arrays.update({f"{name}|logits|{task}": value for task, value in predictions.logits.items()})
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]


def load_predictions(path: Path) -> dict[str, Predictions]:
    """Read what `save_predictions` wrote.

    Args:
        path: The file.

    Returns:
        Predictions by set of images.

    Raises:
        InputError: The file is missing, damaged or something else.
    """
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            return _unpack(dict(file))
    except Exception as error:  # other people's archives raise anything
        raise InputError(f"{path} is damaged: {type(error).__name__}: {str(error)[:160]}; copy it again") from error


def _unpack(arrays: Mapping[str, NDArray[Any]]) -> dict[str, Predictions]:
    sets = {}
    for name in [key.split("|")[0] for key in arrays if key.endswith("|meta")]:
        meta = json.loads(str(arrays[f"{name}|meta"]))
        sets[name] = Predictions(
            {task: tuple(classes) for task, classes in meta["classes"].items()},
            meta["softmax"],
            tuple(meta["ids"]),
            _select(arrays, f"{name}|labels|"),
            _select(arrays, f"{name}|logits|"),
        )
    return sets


def _select(arrays: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}
