"""Small images for a run's page, made from the pixels that the models were asked about."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from taskgraft.report.galleries import FILE, Picture, Thumbnails
from taskgraft.results.files import write_json
from taskgraft.types import Images

SIDE = 128  # pixels of the longer side at most: a photograph takes about 4 KB, noise 10
QUALITY = 75


def collecting(sets: Mapping[str, Images | None], kept: Thumbnails) -> Picture:
    """A function that draws the image of a row of one of the sets, and leaves it in `kept`."""

    def picture(key: str, row: int) -> str | None:
        images = sets.get(key)
        if images is None:
            return None
        own = kept.setdefault(key, {})
        if row not in own:
            own[row] = _uri(images, row)
        return own[row]

    return picture


def keep(folder: Path, kept: Thumbnails) -> None:
    """Write the images of a page beside it, so that `taskgraft report` needs no others."""
    write_json(folder / FILE, {key: {str(row): own[row] for row in sorted(own)} for key, own in kept.items()})


def _uri(images: Images, row: int) -> str:
    picture = Image.fromarray(images.pixels[row].numpy())
    picture.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    picture.save(file, format="JPEG", quality=QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
