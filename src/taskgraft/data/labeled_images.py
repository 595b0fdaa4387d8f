"""Labeled images that a program holds, in the place of a data path: listed, split and decoded like files.

A torchvision dataset, a Dataset of Hugging Face, a DataLoader or a pair of images and labels becomes `LabeledImages`.
Images are read when they are decoded, one by one; what is a file is read as a file, so that a dataset of files gives
the same pixels as their folder.
"""

from __future__ import annotations

import hashlib
import os
import threading
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset

from taskgraft.data import decode
from taskgraft.data.layouts import SPLIT_HINT, Entry, Listing, list_images, split_of
from taskgraft.errors import DataError, InputError, TaskgraftError, first_line
from taskgraft.results.files import escape_surrogates

Content = bytes | Image.Image | str  # an encoded file, an image, or the reason why there is neither
Read = Callable[[], Content]
LABEL = "label"  # the column of what has only one
TOLERANCE = 0.01  # of 255: floats this close to whole numbers are 8-bit pixels that were scaled
KINDS = (
    "a path, a torchvision or other Dataset of (image, class), a Dataset of Hugging Face, a DataLoader, a pair "
    "(images, labels), or a dictionary of those by split"
)


class Example(NamedTuple):
    """An image: its name, its split (or None), its class by label column, and how it is read."""

    name: str
    split: str | None
    labels: Mapping[str, str]
    read: Read


@dataclass(frozen=True, eq=False)
class LabeledImages:
    """Labeled images in memory.

    Attributes:
        name: What messages and records call them.
        layout: What they were, in words.
        examples: The images, whose names differ.
        classes: Class names of each label column in their order; empty = sorted by name.
        notes: What was assumed.
        unlabeled: How many were left out because they have no label.
    """

    name: str
    layout: str
    examples: tuple[Example, ...]
    classes: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...] = ()
    unlabeled: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __str__(self) -> str:
        """Name them as a path would be named."""
        return self.name

    def __repr__(self) -> str:
        """Name them and say how many there are."""
        return f"LabeledImages({self.name}: {len(self.examples)} images, {self.layout})"

    def list(self, task: str, columns: Sequence[str] = ()) -> Listing:
        """List the images with the labels of a task.

        Args:
            task: The task, which names the label column where there are several.
            columns: Further label columns, of other tasks.

        Raises:
            DataError: No column has the labels of the task, or no image has one.
        """
        column = self._find_column(task)
        wanted = {task: column, **{name: name for name in columns if name in self.classes and name != column}}
        entries = []
        for example in self.examples:
            labels = {name: example.labels[source] for name, source in wanted.items() if source in example.labels}
            if labels:
                entries.append(Entry(example.name, example.split, labels))
        if not entries:
            raise DataError(f"{self.name}: no image has a label; give images with their classes")
        count = self.unlabeled + len(self.examples) - len(entries)
        notes = [f"{count} image(s) without a label were left out"] if count else []
        if column not in (task, LABEL):
            notes.append(f"the labels are those of column {column!r}")
        return Listing(Path(), tuple(entries), (), self.layout, (), (*self.notes, *notes), self.classes[column])

    def read(self, name: str) -> Content:
        """Read the image of a name; one at a time, since datasets need not be safe to read from several threads."""
        with self._lock:
            try:
                content: Any = self._reads[name]()
                if isinstance(content, Image.Image):
                    content.load()
            except TaskgraftError:
                raise
            except Exception as error:  # a dataset raises anything; an image may be read from its file only now
                return f"cannot be read: {type(error).__name__}: {first_line(error, 120)}"
            return content

    @cached_property
    def _reads(self) -> Mapping[str, Read]:
        return {example.name: example.read for example in self.examples}

    def _find_column(self, task: str) -> str:
        for name in (task, LABEL):
            if name in self.classes:
                return name
        if len(self.classes) != 1:
            raise DataError(
                f"{self.name} has several columns that may hold the labels; choose one as the task: "
                f"{', '.join(self.classes)}"
            )
        return next(iter(self.classes))


ImageSource = Path | LabeledImages


def list_source(data: ImageSource, task: str, columns: tuple[str, ...] = ()) -> Listing:
    """List the images at a path or in memory, see `layouts.list_images`."""
    return data.list(task, columns) if isinstance(data, LabeledImages) else list_images(data, task, columns)


def as_source(data: Any, what: str = "data") -> ImageSource:
    """Return a data path as a Path, and labeled images in memory, of whatever kind, as `LabeledImages`.

    Args:
        data: A path; a torch or torchvision Dataset of (image, class); a Dataset or DatasetDict of Hugging Face; a
            DataLoader of (images, classes); a pair (images, labels) of arrays or lists; or a dictionary of those by
            split. Images are paths, Pillow images or 8-bit pixels, also as floats in steps of 1/255. Labels are class
            names, or numbers that index the dataset's `classes`; numbers are the names where it has none.
        what: The argument's name, for messages.

    Raises:
        InputError: It is something else, or its images are no pixels.
        DataError: Its labels cannot be used.
    """
    if isinstance(data, LabeledImages):
        return data
    if isinstance(data, str | os.PathLike):
        return Path(data)
    if isinstance(data, Mapping):
        return _join_splits(data, what)
    return _read_set(data, what)


def _join_splits(splits: Mapping[Any, Any], what: str) -> LabeledImages:
    parts: dict[str, LabeledImages] = {}
    for name, data in splits.items():
        split = split_of(str(name))
        if split is None or split in parts:
            raise DataError(f"{what} is a dictionary with the key {str(name)!r}, which is no split or one twice; "
                            f"{SPLIT_HINT}")  # fmt: skip
        if isinstance(data, str | os.PathLike | Mapping):
            raise InputError(f"{what}[{name!r}] is a {type(data).__name__}; give datasets, or a folder that has splits")
        parts[split] = _read_set(data, f"{what}[{name!r}]")
    if not parts:
        raise InputError(f"{what} is an empty dictionary; give {KINDS}")
    first = next(iter(parts.values()))
    columns = {column: names for part in parts.values() for column, names in part.classes.items()}
    return LabeledImages(
        first.name,
        f"{first.layout}, {', '.join(sorted(parts))}",
        tuple(
            example._replace(name=f"{split}/{example.name}", split=split)
            for split, part in parts.items()
            for example in part.examples
        ),
        columns,
        tuple(dict.fromkeys(note for part in parts.values() for note in part.notes)),
        sum(part.unlabeled for part in parts.values()),
    )


def _read_set(data: Any, what: str) -> LabeledImages:
    if _is_hugging_face(data):
        return _read_hugging_face(data, what)
    if isinstance(data, DataLoader):
        return _read_loader(data, what)
    if isinstance(data, tuple) and len(data) == 2:
        return _read_pair(data[0], data[1], what)
    if isinstance(data, IterableDataset):
        return _read_dataset(list(data), what)
    is_indexed = isinstance(data, Sized) and callable(getattr(data, "__getitem__", None))
    if is_indexed and not isinstance(data, Tensor | np.ndarray):
        return _read_dataset(data, what)
    raise InputError(f"{what} is a {type(data).__name__}; give {KINDS}")


# ---- a Dataset of (image, class) -----------------------------------------------------------------------------------


def _read_dataset(dataset: Any, what: str) -> LabeledImages:
    count = len(dataset)
    if not count:
        raise DataError(f"{what} is an empty {type(dataset).__name__}; give one with images")
    source, rows = _unwrap(dataset)
    files = _find_files(source)
    names, labels, notes = _find_class_names(source), list[Any](), list[str]()
    if files:
        names, labels = list(source.classes), [files[row][1] for row in rows]
        root, kind = Path(source.root), f"files of a {type(source).__name__}"
        paths = [Path(files[row][0]) for row in rows]
        keys = [path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path) for path in paths]
        reads: list[Read] = [partial(decode.read_bytes, path) for path in paths]
    else:
        stored = _find_targets(source, dataset, rows)
        labels = [_split_pair(dataset[row], what)[1] for row in range(count)] if stored is None else stored
        keys, kind = list(map(str, range(count))), f"a {type(source).__name__} in memory"
        reads = [partial(_read_row, dataset, row, what) for row in range(count)]
        reads[0]()  # what is no image is refused before anything else is done
    texts, note = _name_labels(labels, names, what)
    return _build(type(source).__name__, kind, keys, texts, reads, names, (*notes, *note))


def _unwrap(dataset: Any) -> tuple[Any, list[int]]:
    """Return what subsets are of, and the rows of it that they take."""
    rows = list(range(len(dataset)))
    while isinstance(dataset, Subset):
        rows, dataset = [int(dataset.indices[row]) for row in rows], dataset.dataset
    return dataset, rows


def _find_files(dataset: Any) -> list[tuple[str, int]] | None:
    """Return (path, class) of a torchvision folder that gives its files as they are; None for any other dataset."""
    if not type(dataset).__module__.startswith("torchvision."):
        return None
    from torchvision.datasets import DatasetFolder
    from torchvision.datasets.folder import default_loader

    changes = ("transform", "target_transform", "transforms")
    if not isinstance(dataset, DatasetFolder) or dataset.loader is not default_loader:
        return None
    return None if any(getattr(dataset, name, None) is not None for name in changes) else list(dataset.samples)


def _find_class_names(dataset: Any) -> list[str]:
    """Return the class names of a dataset by index; none where it does not say."""
    names = getattr(dataset, "classes", None)
    if not isinstance(names, list | tuple) or len(set(map(str, names))) != len(names):
        return []
    return [", ".join(name) if isinstance(name, tuple | list) else str(name) for name in names]  # ImageNet's synonyms


def _find_targets(source: Any, dataset: Any, rows: Sequence[int]) -> list[Any] | None:
    """Return the stored labels of a dataset, if they are what it gives with some of its images."""
    if getattr(source, "target_transform", None) is not None:
        return None
    targets: Any = getattr(source, "targets", None)
    if not isinstance(targets, list | tuple | Tensor | np.ndarray) or len(targets) != len(source):
        return None
    found = [_plain(targets[row]) for row in rows]
    tested = {0, len(rows) // 2, len(rows) - 1}
    same = all(_plain(_split_pair(dataset[row], "the Dataset")[1]) == found[row] for row in tested)
    return found if same else None


def _read_row(dataset: Any, row: int, what: str) -> Content:
    return _as_content(_split_pair(dataset[row], what)[0], what)


def _split_pair(pair: Any, what: str) -> tuple[Any, Any]:
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise InputError(f"{what} gives a {type(pair).__name__}; give one of pairs (image, class)")
    return pair[0], pair[1]


# ---- a DataLoader, and pairs of images and labels ------------------------------------------------------------------


def _read_loader(loader: DataLoader[Any], what: str) -> LabeledImages:
    """Read a DataLoader to its end. Its order may be random: the images are sorted by content, which names them."""
    pixels, labels = list[np.ndarray](), list[Any]()
    for batch in loader:
        inputs, targets = _split_pair(batch, what)
        pixels += [_as_pixels(image, what) for image in inputs]
        labels += list(targets)
    if len(pixels) != len(labels):
        raise DataError(f"{what} gives {len(pixels)} images and {len(labels)} labels; give one label per image")
    digests = [hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()[:16] for image in pixels]
    order = sorted(range(len(pixels)), key=lambda row: (digests[row], str(_plain(labels[row]))))
    source = _unwrap(loader.dataset)[0] if isinstance(loader.dataset, Sized) else loader.dataset
    names = _find_class_names(source)
    texts, note = _name_labels([labels[row] for row in order], names, what)
    reads = [partial(Image.fromarray, pixels[row]) for row in order]
    keys = _make_unique([digests[row] for row in order])
    return _build(f"DataLoader of {type(source).__name__}", "a DataLoader", keys, texts, reads, names, note)


def _read_pair(images: Any, labels: Any, what: str) -> LabeledImages:
    values = labels.tolist() if isinstance(labels, Tensor | np.ndarray) else list(labels)
    if isinstance(images, Tensor | np.ndarray) and images.ndim < 3:
        raise InputError(
            f"{what}: images are {list(images.shape)} of {str(images.dtype).removeprefix('torch.')}; give pixels "
            "[N, H, W, 3], or use taskgraft.learn, which takes inputs of any shape"
        )
    if len(images) != len(values) or not values:
        raise DataError(f"{what}: there are {len(images)} images and {len(values)} labels; give one label per image")
    texts, note = _name_labels(values, [], what)
    keys = [os.fspath(image) if isinstance(image, str | os.PathLike) else str(row) for row, image in enumerate(images)]
    reads = [partial(_as_content, image, what) for image in images]
    reads[0]()
    return _build("images in memory", "a pair of images and labels", _make_unique(keys), texts, reads, [], note)


# ---- a Dataset of Hugging Face -------------------------------------------------------------------------------------


def _is_hugging_face(data: Any) -> bool:
    kind = type(data)
    return kind.__module__.partition(".")[0] == "datasets" and kind.__name__ in ("Dataset", "IterableDataset")


def _read_hugging_face(dataset: Any, what: str) -> LabeledImages:
    features: Mapping[str, Any] = dataset.features or {}
    kinds = {name: type(feature).__name__ for name, feature in features.items()}
    if type(dataset).__name__ == "IterableDataset":
        raise InputError(f"{what} is a streaming dataset of Hugging Face; load it without streaming=True")
    images = [name for name, kind in kinds.items() if kind == "Image"]
    if len(images) != 1 and "image" not in images:
        found = f"the image columns {', '.join(images)}" if images else f"the columns {', '.join(kinds)}, and no image"
        raise DataError(f"{what} has {found}; keep one column of datasets.Image, by cast_column or select_columns")
    image = "image" if "image" in images else images[0]
    classes = {name: tuple(features[name].names) for name, kind in kinds.items() if kind == "ClassLabel"}
    texts = {name for name, kind in kinds.items() if kind == "Value" and "string" in str(features[name].dtype)}
    classes = classes or dict.fromkeys(texts & {LABEL, "labels"}, ())
    if not classes:
        raise DataError(
            f"{what} has the columns {', '.join(kinds)}, and none of datasets.ClassLabel; make one by "
            "class_encode_column, or name a column of texts 'label'"
        )
    notes = []
    if dataset.format["type"] is not None:
        notes.append("its format or transform is not applied: images are read as they are stored")
    plain = dataset.with_format(None).cast_column(image, type(features[image])(decode=False))
    labels = {
        column: _name_labels(list(plain[column]), list(names), f"{what} column {column}")[0]
        for column, names in classes.items()
    }
    examples = [
        Example(
            str(row),
            None,
            {column: text for column, values in labels.items() if (text := values[row]) is not None},
            partial(_read_stored, plain, row, image),
        )
        for row in range(len(plain))
    ]
    name = str(getattr(getattr(dataset, "info", None), "dataset_name", None) or "Dataset")
    return LabeledImages(name, "a Dataset of Hugging Face", tuple(examples), classes, tuple(notes))


def _read_stored(dataset: Any, row: int, column: str) -> Content:
    stored = dataset[row][column]
    if not stored:
        return "there is no image in its row"
    if stored.get("bytes") is not None:
        return bytes(stored["bytes"])
    return decode.read_bytes(Path(stored["path"])) if stored.get("path") else "there is no image in its row"


# ---- labels and pixels ---------------------------------------------------------------------------------------------


def _name_labels(labels: Sequence[Any], names: Sequence[str], what: str) -> tuple[list[str | None], tuple[str, ...]]:
    """Return the class name of each label, None where it has none, and what was assumed."""
    plain = [_plain(label) for label in labels]
    numbered = False
    texts: list[str | None] = []
    for row, label in enumerate(plain):
        if label is None or label == -1 or label == "":
            texts.append(None)
        elif isinstance(label, str):
            texts.append(unicodedata.normalize("NFC", label))
        elif isinstance(label, bool) or (isinstance(label, int) and not names):
            numbered = True
            texts.append(str(label))
        elif isinstance(label, int) and 0 <= label < len(names):
            texts.append(unicodedata.normalize("NFC", names[label]))
        else:
            reason = f"none of its {len(names)} classes" if isinstance(label, int) else "no class name or number"
            raise DataError(f"{what}: the label {str(label)[:60]} of image {row} is {reason}; fix it")
    return texts, (("its classes have no names: their numbers are used",) if numbered else ())


def _plain(label: Any) -> Any:
    count = label.numel() if isinstance(label, Tensor) else getattr(label, "size", 0)
    if isinstance(label, Tensor | np.ndarray | np.generic) and count == 1:
        return label.item()
    return label


def _build(
    name: str,
    layout: str,
    keys: Sequence[str],
    labels: Sequence[str | None],
    reads: Sequence[Read],
    classes: Sequence[str],
    notes: Sequence[str],
) -> LabeledImages:
    names = tuple(unicodedata.normalize("NFC", one) for one in classes)
    numbers = [label for label in dict.fromkeys(labels) if label is not None]
    if not names and all(label.lstrip("-").isdigit() for label in numbers):
        names = tuple(sorted(numbers, key=int))  # 10 comes after 9
    examples = tuple(
        Example(escape_surrogates(key), None, {LABEL: label}, read)
        for key, label, read in zip(keys, labels, reads, strict=True)
        if label is not None
    )
    return LabeledImages(name, layout, examples, {LABEL: names}, tuple(notes), len(keys) - len(examples))


def _make_unique(names: Sequence[str]) -> list[str]:
    seen: Counter[str] = Counter()
    unique = []
    for name in names:
        seen[name] += 1
        unique.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return unique


def _as_content(image: Any, what: str) -> Content:
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, str | os.PathLike):
        return decode.read_bytes(Path(image))
    return Image.fromarray(_as_pixels(image, what))


def _as_pixels(image: Any, what: str) -> np.ndarray:
    """Return pixels [H, W] or [H, W, C] as uint8 from an array, or a tensor whose channels come first.

    Raises:
        InputError: It has another shape, or its values are no 8-bit pixels.
    """
    if isinstance(image, Image.Image):
        return np.asarray(decode.convert_to_rgb(image))
    if not isinstance(image, Tensor | np.ndarray):
        raise InputError(f"{what} gives a {type(image).__name__} as an image; give Pillow images, pixels or paths")
    values = image.detach().cpu() if isinstance(image, Tensor) else torch.from_numpy(np.ascontiguousarray(image))
    if values.dim() == 3 and isinstance(image, Tensor) and values.shape[0] in (1, 3, 4):  # as torchvision has them
        values = values.permute(1, 2, 0)
    if values.dim() == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    if values.dim() not in (2, 3) or (values.dim() == 3 and values.shape[2] not in (3, 4)):
        raise InputError(f"{what} gives an image {list(image.shape)}; give [H, W], [H, W, 3], or a tensor [3, H, W]")
    if values.is_floating_point():
        scaled = values.float() * 255
        whole = scaled.round()
        if not bool(((scaled - whole).abs() <= TOLERANCE).all()) or whole.min() < 0 or whole.max() > 255:
            raise InputError(
                f"{what} gives floats that are no 8-bit pixels, from {float(values.min()):.3g} to "
                f"{float(values.max()):.3g}; give images without a normalization (the model has its own), or use "
                "taskgraft.learn, which takes inputs as they are"
            )
        values = whole.to(torch.uint8)
    if values.dtype != torch.uint8:
        raise InputError(f"{what} gives an image of {str(values.dtype).removeprefix('torch.')}; give uint8 pixels")
    return np.ascontiguousarray(values.numpy())
