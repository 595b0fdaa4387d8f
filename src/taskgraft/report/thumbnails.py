"""Thumbnails on a run's page: made from the pixels that the model saw, stored beside the page, read again."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from taskgraft.errors import InputError
from taskgraft.results.files import write_json

FILE = "thumbnails.json"
MAX_SIDE = 128  # pixels: a photograph takes about 4 KB, noise 10
QUALITY = 75

GetThumbnail = Callable[[str, int], str | None]  # (set of images, row) -> data URI, or None for no image
_DataUri = Annotated[str, Field(pattern=r"^data:image/jpeg;base64,[A-Za-z0-9+/]+=*$")]
_FORMAT = TypeAdapter(dict[str, dict[int, _DataUri]])


class ThumbnailMaker:
    """Makes thumbnails on request and remembers them, so that they can be stored with the page that shows them.

    Args:
        sets: Named `Images`, such as "new" and "old", with `pixels` [N, H, W, 3] uint8; None for a set without images.
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
            made[row] = _encode(np.asarray(images.pixels[row]))
        return made[row]

    def save(self, folder: Path) -> None:
        """Write all thumbnails made so far to a run folder, so that `taskgraft report` needs no images."""
        write_json(
            folder / FILE, {name: {str(row): made[row] for row in sorted(made)} for name, made in self._made.items()}
        )


def no_thumbnail(name: str, row: int) -> None:
    """The GetThumbnail of a page without images."""


def load_thumbnails(folder: Path) -> GetThumbnail:
    """Load the thumbnails of a run folder; without the file there are none.

    Raises:
        InputError: If the file is damaged.
    """
    file = folder / FILE
    if not file.is_file():
        return no_thumbnail
    try:
        stored = _FORMAT.validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        raise InputError(f"{file} is damaged; delete it for a report without images") from error
    return lambda name, row: stored.get(name, {}).get(row)


def _encode(pixels: np.ndarray) -> str:
    from PIL import Image

    image = Image.fromarray(pixels)
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
