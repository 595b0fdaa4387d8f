"""Labeled examples that are in memory or come from a torch Dataset or DataLoader, as `Images`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from taskgraft.data import decode
from taskgraft.errors import InputError
from taskgraft.types import Images, Task

# Images; pairs (inputs, labels) of arrays or tensors; a Dataset of (image, label); a DataLoader of (inputs, labels)
Examples = Images | tuple[Any, Any] | Dataset[Any] | DataLoader[Any]
KINDS = (
    "Images, a pair (inputs, labels) of arrays or tensors, a Dataset of (image, class index), or a DataLoader of "
    "(inputs, class indices)"
)


def as_images(examples: Examples, task: Task) -> Images:
    """Return examples with labels of a task as `Images`, whatever form they come in.

    A Dataset and a DataLoader are read once, to the end, into memory: transforms that are random are drawn once.
    uint8 pixels [N, H, W, C] are scaled to [0, 1]; float inputs [N, ...] are used as they are.

    Args:
        examples: The examples; labels are class indices, -1 = not labeled.
        task: The task that they are labeled for.

    Raises:
        InputError: They have another form, or labels that are no classes of the task; the message says which.
    """
    if isinstance(examples, Images):
        images = examples
    elif isinstance(examples, tuple) and len(examples) == 2:
        images = _build(as_pixels(examples[0]), examples[1], task)
    elif isinstance(examples, DataLoader):
        batches = [_split_pair(batch, "DataLoader") for batch in examples]
        images = _build(_join(torch.cat, (as_pixels(pixels) for pixels, _ in batches)), _labels(batches), task)
    elif isinstance(examples, Dataset):
        samples = [_split_pair(sample, "Dataset") for sample in _iterate(examples)]
        images = _build(_join(torch.stack, (_read_sample(image) for image, _ in samples)), _labels(samples), task)
    else:
        raise InputError(f"images are given as a {type(examples).__name__}; give {KINDS}")
    return _check(images, task)


def as_pixels(values: Any) -> Tensor:
    """Return inputs as `Images.pixels`: uint8 [N, H, W, C] or float [N, ...].

    Raises:
        InputError: They are neither, or not finite.
    """
    if isinstance(values, np.ndarray):
        if values.dtype.kind not in "fu" or not (values.dtype == np.uint8 or values.dtype.kind == "f"):
            raise _wrong_inputs(values)
        values = torch.from_numpy(np.ascontiguousarray(values))
    if not isinstance(values, Tensor) or not values.dim():
        raise InputError(f"inputs are a {type(values).__name__}; give an array or tensor with one input in each row")
    if values.dtype == torch.uint8:
        if values.dim() != 4 or values.shape[3] not in (1, 3):
            raise _wrong_inputs(values)
        return values
    if not values.is_floating_point() or values.dim() < 2:
        raise _wrong_inputs(values)
    broken = int((~torch.isfinite(values)).flatten(1).any(1).sum())
    if broken:
        raise InputError(f"{broken} of {len(values)} inputs have values that are not finite; leave them out")
    return values.float()


def _wrong_inputs(values: Tensor | NDArray[Any]) -> InputError:
    kind = str(values.dtype).removeprefix("torch.")
    return InputError(
        f"inputs are {list(values.shape)} of {kind}; give uint8 pixels [N, H, W, 3] or float inputs [N, ...]"
    )


def _iterate(dataset: Dataset[Any]) -> Iterable[Any]:
    if isinstance(dataset, torch.utils.data.IterableDataset):
        return dataset
    sized: Any = dataset
    return (dataset[row] for row in range(len(sized)))  # many datasets have no end for `for`


def _split_pair(pair: Any, kind: str) -> tuple[Any, Any]:
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise InputError(f"the {kind} gives a {type(pair).__name__}; give one of pairs (image, class index)")
    return pair[0], pair[1]


def _read_sample(image: Any) -> Tensor:
    """Return one image of a Dataset: uint8 [H, W, C], or a float input."""
    if isinstance(image, Image.Image):
        return torch.from_numpy(np.array(decode.convert_to_rgb(image)))
    if isinstance(image, Tensor) and image.dtype == torch.uint8 and image.dim() == 3:  # as torchvision has them
        image = image.permute(1, 2, 0)
    if isinstance(image, Tensor | np.ndarray):
        return as_pixels(image[None])[0]
    raise InputError(
        f"the Dataset gives a {type(image).__name__} as an image; give a tensor, an array or a Pillow image"
    )


def _join(join: Callable[[list[Tensor]], Tensor], parts: Iterable[Tensor]) -> Tensor:
    tensors = list(parts)
    shapes = list(dict.fromkeys(tuple(part.shape[1:] if join is torch.cat else part.shape) for part in tensors))
    if len(shapes) > 1:
        raise InputError(
            f"images differ in size ({', '.join(map(str, shapes[:3]))}); add a transform that resizes them to one"
        )
    if not tensors:
        raise InputError("there are no images: the Dataset or DataLoader is empty; give one with images")
    return join(tensors)


def _labels(pairs: list[tuple[Any, Any]]) -> NDArray[Any]:
    labels = [label.cpu() if isinstance(label, Tensor) else label for _, label in pairs]
    return np.concatenate([np.atleast_1d(np.asarray(label)) for label in labels])


def _build(pixels: Tensor, labels: Any, task: Task) -> Images:
    values = np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels)
    if values.dtype.kind not in "iu" or values.ndim != 1:
        raise InputError(
            f"labels are {list(values.shape)} of {values.dtype}; give the class index of each image, [N] integers"
        )
    if len(values) and (values == -1).all():  # of `Images` a method may learn without labels
        raise InputError(f"no image is labeled for {task.name!r}: every label is -1; give class indices from 0 on")
    return Images(pixels, {task.name: torch.from_numpy(values.astype(np.int64))}, tuple(map(str, range(len(pixels)))))


def _check(images: Images, task: Task) -> Images:
    labels: Mapping[str, Tensor] = images.labels
    if task.name not in labels:
        raise InputError(
            f"the images are labeled for {', '.join(labels) or 'nothing'}, but the task to learn is {task.name!r}; "
            "add its labels"
        )
    target = labels[task.name]
    if len(target) != len(images.pixels) or not len(target):
        raise InputError(f"there are {len(images.pixels)} images and {len(target)} labels; give one label per image")
    wrong = torch.nonzero((target < -1) | (target >= len(task.classes))).flatten()
    if len(wrong):
        raise InputError(
            f"label {int(target[wrong[0]])} of image {images.names[int(wrong[0])]} is none of the {len(task.classes)} "
            f"classes of {task.name!r}; count them from 0, -1 = not labeled"
        )
    return images
