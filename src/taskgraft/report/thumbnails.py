"""Thumbnails on a page: made from the pixels that the model saw, grouped in galleries, stored beside the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from taskgraft.errors import InputError
from taskgraft.report import formatting as fmt
from taskgraft.report.error_analysis import Example, group_examples
from taskgraft.results.files import write_json

FILE = "thumbnails.json"
MAX_SIDE = 128  # pixels: a photograph takes about 4 KB, noise 10
QUALITY = 75
MAX_IMAGES = 60  # of a page: with the largest thumbnails it stays below 1.5 MB
MAX_GROUPS = 6  # of a gallery
MAX_GROUP_IMAGES = 3

GetThumbnail = Callable[[str, int], str | None]  # (set of images, row) -> data URI, or None for no image
_DataUri = Annotated[str, Field(pattern=r"^data:image/jpeg;base64,[A-Za-z0-9+/]+=*$")]
_FORMAT = TypeAdapter(dict[str, dict[int, _DataUri]])


class ThumbnailMaker:
    """Makes thumbnails on request and remembers them, so that they can be stored with the page that shows them.

    Args:
        sets: Named `Images`, such as "new" and "old", with `pixels` [N, H, W, C] uint8; None for a set without images.
    """

    def __init__(self, sets: Mapping[str, Any]) -> None:
        self._sets = sets
        self._made: dict[str, dict[int, str]] = {}

    def __call__(self, name: str, row: int) -> str | None:
        """Return image `row` of the set `name` as a data URI; None where there is no such set."""
        images = self._sets.get(name)
        if images is None:
            return None
        made = self._made.setdefault(name, {})
        if row not in made:
            made[row] = encode_thumbnail(np.asarray(images.pixels[row]))
        return made[row]

    def save(self, folder: Path) -> None:
        """Write all thumbnails made so far to a run folder, so that `taskgraft report` needs no images."""
        write_json(
            folder / FILE, {name: {str(row): made[row] for row in sorted(made)} for name, made in self._made.items()}
        )


def encode_thumbnail(pixels: np.ndarray) -> str:
    """Encode an image [H, W, 3] uint8 as the data URI of a JPEG of at most MAX_SIDE pixels."""
    from PIL import Image

    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def no_thumbnail(name: str, row: int) -> None:
    """The GetThumbnail of a page without images."""


def load_thumbnails(folder: Path) -> GetThumbnail:
    """Load the thumbnails of a run folder; without the file there are none.

    Raises:
        InputError: If the file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return no_thumbnail
    try:
        stored = _FORMAT.validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise InputError(f"{path} is damaged; delete it for a report without images") from error
    return lambda name, row: stored.get(name, {}).get(row)


class ImageGroup(NamedTuple):
    """Images with the same two classes: labeled names such as ("true", "BMW 3"), a note, the images.

    An image is its data URI, its alternative text and its confidence.
    """

    names: tuple[tuple[str, str], ...]
    note: str
    images: list[tuple[str, str, float]]


class Gallery(NamedTuple):
    """Groups of images under one title."""

    title: str
    groups: list[ImageGroup]


class GalleryBuilder:
    """Builds the galleries of a page, three for each of its tasks, within the page's limit of images.

    Args:
        get_thumbnail: Returns the images.
        tasks: Number of tasks.
        reserved: Images that the page shows elsewhere.
    """

    def __init__(self, get_thumbnail: GetThumbnail, tasks: int, reserved: int = 0) -> None:
        self._get_thumbnail = get_thumbnail
        self._max_images = (MAX_IMAGES - reserved) // max(2, tasks) // 3

    def build(
        self,
        title: str,
        labels: tuple[str, str],
        set_name: str,
        examples: Iterable[Example],
        class_sizes: Mapping[str, int] | None = None,
    ) -> Gallery | None:
        """Build a gallery of the most frequent pairs of classes.

        Args:
            title: Its title.
            labels: What the two classes of an example are called, such as ("true", "now").
            set_name: The set of images.
            examples: The images.
            class_sizes: Images of each class, to note the fraction of the first one.

        Returns:
            None without images.
        """
        groups, room = [], self._max_images
        for members in group_examples(examples)[:MAX_GROUPS]:
            names = (labels[0], members[0].first), (labels[1], members[0].second)
            text = ", ".join(f"{label} {name}" for label, name in names)
            images = []
            for example in members[: min(MAX_GROUP_IMAGES, room)]:
                if source := self._get_thumbnail(set_name, example.row):
                    images.append((source, f"{example.image}: {text}", example.confidence))
            note = fmt.pluralize(len(members), "image")
            if class_sizes:
                note += f", {fmt.percent(len(members) / class_sizes[members[0].first])} % of the class"
            if images:
                groups.append(ImageGroup(names, note, images))
            room -= len(images)
        return Gallery(title, groups) if groups else None
