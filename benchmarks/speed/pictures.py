"""Drawn images on disk for the cold start: JPEG files of photograph size, each with content of its own."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from taskgraft.seeding import generator
from taskgraft.synthetic import MAKES, PAINTS, draw_car

SIDE, CUT = 400, 40  # a drawing is cut down to 360 pixels at a place of its own, so that few drawings give many files
DRAWINGS = 120
VERSION = 1


def written(folder: Path, count: int, side: int = SIDE) -> Path:
    """`count` JPEG files as folder/train/PAINT/N.jpg and a tenth as many below folder/val; drawn once, then kept."""
    told = {"count": count, "side": side, "version": VERSION}
    marker = folder / "drawn.json"
    if marker.exists() and json.loads(marker.read_text()) == told:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    drawings = [_drawing(number, side) for number in range(min(DRAWINGS, count))]
    for split, total in (("train", count), ("val", max(count // 10, len(PAINTS)))):
        for number in range(total):
            paint = PAINTS[number % len(PAINTS)]
            home = folder / split / paint
            home.mkdir(parents=True, exist_ok=True)
            picture = _variant(drawings[number % len(drawings)], number, split)
            picture.save(home / f"{number:06d}.jpg", quality=88)
    aside = folder / f".{os.getpid()}.json"
    aside.write_text(json.dumps(told))
    aside.replace(marker)
    return folder


def _drawing(number: int, side: int) -> np.ndarray:
    paint, make = PAINTS[number % len(PAINTS)], MAKES[number // len(PAINTS) % len(MAKES)]
    return draw_car(make, paint, number, side)


def _variant(drawing: np.ndarray, number: int, split: str) -> Image.Image:
    """Another cut, another light: other bytes, the same paint."""
    rng = generator(0, split, number)
    cut = drawing.shape[0] * CUT // SIDE
    top, left = rng.integers(0, cut + 1, 2)
    side = drawing.shape[0] - cut
    part = drawing[top : top + side, left : left + side]
    return Image.fromarray((part * rng.uniform(0.8, 1.0)).astype(np.uint8))
