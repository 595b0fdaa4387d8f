"""The decoder's rules: whatever bytes come, pixels of the wanted size or a reason, and the same each time."""

from __future__ import annotations

import io
import random
from pathlib import Path

import numpy as np
from PIL import Image

from fuzz.fuzzing import Target
from taskgraft.data import decode
from taskgraft.data.transforms import Preprocessing

WANTED = Preprocessing(8, "center", 0.875, "bilinear")
MOST = 20_000  # pixels: an image that is let in costs little
KINDS = (
    ("JPEG", "RGB"), ("JPEG", "CMYK"), ("JPEG", "L"), ("PNG", "RGBA"), ("PNG", "P"), ("PNG", "I;16"), ("PNG", "1"),
    ("WEBP", "RGBA"), ("BMP", "RGB"), ("GIF", "P"), ("TIFF", "RGB"), ("TIFF", "F"), ("PPM", "RGB"), ("AVIF", "RGB"),
)  # fmt: skip
WORDS = (
    b"\xff\xd8\xff", b"\xff\xd9", b"\xff\xda", b"\xff\xc0", b"\xff\xe1", b"Exif\0\0", b"II*\0", b"MM\0*", b"IHDR",
    b"IDAT", b"IEND", b"tRNS", b"PLTE", b"eXIf", b"acTL", b"GIF89a", b"RIFF", b"WEBPVP8X", b"ftypavif", b"ftypheic",
    b"BM", b"P6\n8 8\n255\n", b"\x12\x01\x03\0\x01\0\0\0",
)  # fmt: skip


def target(folder: Path) -> Target:
    return Target(one, [drawn(kind, mode) for kind, mode in KINDS], WORDS, longest=4096, executions=700)


def drawn(kind: str, mode: str) -> bytes:
    """A small image of a kind, turned by its EXIF where it can be; GIFs have two frames."""
    rng = random.Random(f"{kind} {mode}")
    image = Image.frombytes("RGB", (12, 9), rng.randbytes(12 * 9 * 3))
    if mode == "I;16":
        image = Image.frombytes(mode, (12, 9), rng.randbytes(12 * 9 * 2))
    image, file = image if mode == "I;16" else image.convert(mode), io.BytesIO()
    turned = Image.Exif()
    turned[0x0112] = 6
    more = {"save_all": True, "append_images": [image.rotate(90)]} if kind == "GIF" else {"exif": turned}
    image.save(file, kind, **({} if kind in ("BMP", "PPM") else more))
    return file.getvalue()


def one(data: bytes) -> None:
    result = decode.decode_bytes(data, WANTED, MOST)
    assert (result.pixels is None) == bool(result.reason)
    if result.pixels is None:
        return
    assert (result.pixels.shape, result.pixels.dtype) == ((8, 8, 3), np.uint8)
    assert result.width * result.height <= MOST
    assert all(isinstance(remark, str) for remark in decode.find_remarks(data, ".png"))
    again = decode.decode_bytes(data, WANTED, MOST).pixels
    assert again is not None
    assert (again == result.pixels).all()
