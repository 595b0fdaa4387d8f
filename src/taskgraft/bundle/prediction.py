"""What a model answers to images at hand: files, Pillow images, NumPy arrays, or a tensor that is preprocessed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from taskgraft import metrics
from taskgraft.data import decode
from taskgraft.data.transforms import Preprocessing
from taskgraft.errors import DataError, InputError, require
from taskgraft.models import inference
from taskgraft.models.classifier import Classifier
from taskgraft.results.predictions import Predictions
from taskgraft.results.tables import html_table
from taskgraft.types import Images, PathLike

MAX_ROWS = 20  # of the table that a notebook shows

ImageLike = PathLike | Image.Image | NDArray[np.uint8]  # a file, an open image, or pixels [H, W, C]


@dataclass(frozen=True, repr=False, eq=False)
class Prediction:
    """Labels and probabilities of every task for one or several images; `prediction[0]` is that of the first alone.

    Attributes:
        names: [N] path of each image, or its position where it came without one.
        classes: Task -> class names.
        labels: Task -> [N] class names; None where a joint softmax prefers a class of another task.
        probabilities: Task -> [N, K], calibrated by the temperature on the task card.
    """

    names: tuple[str, ...]
    classes: dict[str, tuple[str, ...]]
    labels: dict[str, list[str | None]]
    probabilities: dict[str, NDArray[np.float64]]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.names)

    def __getitem__(self, row: int) -> Prediction:
        """Return the prediction for one image alone."""
        row = range(len(self))[row]  # an IndexError for a row that there is not, which also ends a loop
        return Prediction(
            self.names[row : row + 1],
            self.classes,
            {task: labels[row : row + 1] for task, labels in self.labels.items()},
            {task: values[row : row + 1] for task, values in self.probabilities.items()},
        )

    def to_frame(self) -> Any:
        """Return a pandas DataFrame: `id`, and `TASK.label` and `TASK.probability` of each task, as `predict` writes.

        Raises:
            MissingDependency: pandas is not installed.
        """
        require("", "pandas", what="to_frame()")
        import pandas

        columns: dict[str, Any] = {"id": list(self.names)}
        for task, labels in self.labels.items():
            columns[f"{task}.label"] = labels
            columns[f"{task}.probability"] = self.probabilities[task].max(axis=1)
        return pandas.DataFrame(columns)

    def __repr__(self) -> str:
        """Name the labels of a single image, or how many images there are."""
        if len(self) == 1:
            return f"Prediction({', '.join(f'{task} {self._describe(task, 0)}' for task in self.labels)})"
        return f"Prediction({len(self)} images; tasks: {', '.join(self.labels)})"

    def _repr_html_(self) -> str:
        count = f"{len(self)} image{'s' * (len(self) != 1)}"
        rows = [
            [name, *(self._describe(task, row) for task in self.labels)]
            for row, name in enumerate(self.names[:MAX_ROWS])
        ]
        caption = count if len(self) <= MAX_ROWS else f"{count}, the first {MAX_ROWS}"
        return html_table(caption, ["image", *self.labels], rows)

    def _describe(self, task: str, row: int) -> str:
        return f"{self.labels[task][row] or '–'} {self.probabilities[task][row].max():.1%}"


def predict_images(
    classifier: Classifier,
    preprocessing: Preprocessing,
    temperatures: Mapping[str, float],
    images: ImageLike | Tensor | Sequence[ImageLike],
    batch_size: int = inference.BATCH_SIZE,
) -> Prediction:
    """Predict every task for images at hand, in eval mode; all but a tensor are decoded as in training.

    Args:
        classifier: The classifier.
        preprocessing: How images become its input.
        temperatures: Task -> temperature of its probabilities.
        images: A path, a Pillow image, pixels [H, W, C] or [N, H, W, C] as uint8, a list of those, or a preprocessed
            float tensor [B, C, H, W], which is used as it is.
        batch_size: Images that are held in memory and run at once.

    Raises:
        InputError: Something else was given.
        DataError: An image cannot be read.
    """
    if batch_size < 1:
        raise InputError(f"batch_size {batch_size} is too small; give 1 or more")
    if isinstance(images, Tensor):
        batch = _check_tensor(images, preprocessing)
        inference.check_inputs(classifier, batch)
        batches = [inference.predict(classifier, batch, batch_size)]
    else:
        items = _list_items(images)
        names = [_find_name(item, number) for number, item in enumerate(items)]  # before anything is decoded
        batches = [
            inference.predict(classifier, batch, batch_size)
            for batch in _decode_batches(items, names, preprocessing, batch_size)
        ]
    classes = {task.name: task.classes for task in classifier.tasks}
    names = tuple(name for batch in batches for name in batch.ids)
    logits = {task: np.concatenate([batch.logits[task] for batch in batches]) for task in classes}
    predictions = Predictions(classes, classifier.softmax, names, {}, logits)
    labels = {
        task: [classes[task][row] if row >= 0 else None for row in metrics.predicted_classes(predictions, task)]
        for task in classes
    }
    probabilities = {task: metrics.probabilities(logits[task], temperatures.get(task, 1.0)) for task in classes}
    return Prediction(names, classes, labels, probabilities)


def read_images(images: ImageLike | Sequence[ImageLike], preprocessing: Preprocessing) -> Images:
    """Decode images at hand, all of them into memory, without labels.

    Args:
        images: A path, a Pillow image, pixels [H, W, C] or [N, H, W, C] as uint8, or a list of those.
        preprocessing: Their size and normalization.

    Raises:
        InputError: Something else was given.
        DataError: An image cannot be read.
    """
    items = _list_items(images)
    names = [_find_name(item, number) for number, item in enumerate(items)]
    batches = list(_decode_batches(items, names, preprocessing, inference.BATCH_SIZE))
    return batches[0]._replace(pixels=torch.cat([batch.pixels for batch in batches]), names=tuple(names))


def _list_items(images: Any) -> list[ImageLike]:
    several = isinstance(images, list | tuple) or (isinstance(images, np.ndarray) and images.ndim == 4)
    items: list[Any] = list(images) if several else [images]
    if not items:
        raise InputError("the list of images is empty; give at least one")
    return items


def _find_name(item: Any, number: int) -> str:
    """Return the path of an image, or its number where it has none.

    Raises:
        InputError: It is no image.
    """
    if isinstance(item, str | os.PathLike):
        return os.fspath(item)
    if isinstance(item, Image.Image):
        return str(getattr(item, "filename", "") or number)
    if isinstance(item, np.ndarray):
        if item.dtype == np.uint8 and (item.ndim == 2 or (item.ndim == 3 and item.shape[2] in (1, 3, 4))):
            return str(number)
        raise InputError(
            f"image {number} is an array {list(item.shape)} of {item.dtype}; give [H, W, C] of uint8 with 1, "
            "3 or 4 channels, or a preprocessed float tensor [B, 3, H, W]"
        )
    raise InputError(
        f"image {number} is of type {type(item).__name__}; give a path, a Pillow image, a uint8 array "
        "[H, W, C], a list of those, or a preprocessed tensor [B, 3, H, W]"
    )


def _decode_batches(
    items: Sequence[ImageLike], names: Sequence[str], preprocessing: Preprocessing, size: int
) -> Iterator[Images]:
    with decode.thread_pool() as pool:
        for start in range(0, len(items), size):
            rows = range(start, min(start + size, len(items)))
            files = {row: pool.submit(_decode, items[row], preprocessing) for row in rows if _is_path(items[row])}
            pixels = []
            for row in rows:  # only files in threads: an open image may be in the list twice, and be read just now
                image = files[row].result() if row in files else _decode(items[row], preprocessing)
                if image.pixels is None:
                    raise DataError(
                        f"image {names[row]}: {image.reason}; leave it out, or use taskgraft.predict_files, "
                        "which gives the reason in its place and reads folders and videos too"
                    )
                pixels.append(image.pixels)
            stacked, batch_names = torch.from_numpy(np.stack(pixels)), tuple(names[row] for row in rows)
            yield Images(stacked, {}, batch_names, preprocessing.mean, preprocessing.std)


def _is_path(item: ImageLike) -> bool:
    return isinstance(item, str | os.PathLike)


def _decode(item: ImageLike, preprocessing: Preprocessing) -> decode.Decoded:
    if isinstance(item, str | os.PathLike):
        return decode.decode_file(Path(item), preprocessing)
    if isinstance(item, np.ndarray):
        item = Image.fromarray(item[:, :, 0] if item.ndim == 3 and item.shape[2] == 1 else item)
    return decode.decode_image(item, preprocessing)


def _check_tensor(images: Tensor, preprocessing: Preprocessing) -> Images:
    channels, size = preprocessing.channels, preprocessing.size
    if images.dim() != 4 or images.shape[1] != channels or not images.is_floating_point() or not len(images):
        raise InputError(
            f"a tensor {list(images.shape)} of {str(images.dtype).removeprefix('torch.')}; give a "
            f"preprocessed float tensor [B, {channels}, {size}, {size}], or pixels as a uint8 array [H, W, C]"
        )
    broken = int((~torch.isfinite(images)).flatten(1).any(1).sum())
    if broken:
        raise InputError(f"{broken} of {len(images)} images have values that are not finite; leave them out")
    return Images(images, {}, tuple(map(str, range(len(images)))))
