"""Decodes image files to RGB or gray pixels by fixed rules; the only place where images are opened.

Rules: decoded by content, not by name; EXIF orientation applied; gray, palette and CMYK converted to RGB, and from
there to gray (Pillow's "L", before resizing, as timm does) where the network takes one channel;
transparency composited on white; 16-bit scaled to 8 from the bits that the model's preprocessing names; the first
frame of an animation; float images refused, since nobody knows their range; a JPEG that is far larger than needed is
decoded at a half, a quarter or an eighth of its scale, as long as that leaves OVERSAMPLING times the final size. A
file that breaks a rule is refused with a reason, never replaced.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from taskgraft.data import tar_shards
from taskgraft.data.transforms import Preprocessing, compute_scaled_size, resize
from taskgraft.results.files import escape_surrogates

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")
MAX_BYTES = 256 * 2**20
MAX_PIXELS = 89_478_485  # Pillow's own warning level: about a quarter of a GiB of RGB
MIN_SIDE = 4
MAX_ASPECT = 100.0
OVERSAMPLING = (
    4  # at 4 a pixel differs from full decoding by 0.1 to 0.5 of 255 on average, at 2 by up to 1.2 (benchmarks/)
)
VERSION = "6"  # of these rules; part of the cache's key
BEYOND = "is beyond the preprocessing's"  # of a reason that another preprocessing would not give
HEIC = (b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypmif1", b"ftypmsf1")
SUFFIXES = {
    ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".png": "PNG", ".webp": "WEBP", ".bmp": "BMP",
    ".gif": "GIF", ".tif": "TIFF", ".tiff": "TIFF", ".ppm": "PPM", ".pgm": "PPM", ".pbm": "PPM", ".pnm": "PPM",
    ".avif": "AVIF",
}  # fmt: skip

_workers: ContextVar[int] = ContextVar("workers", default=0)


class Decoded(NamedTuple):
    """A decoded image [H, W, C] uint8, or the reason why there is none; size of the original in pixels.

    `peak` is the largest value of an image of 16 bits, 0 for others.
    """

    pixels: NDArray[np.uint8] | None
    reason: str | None
    width: int = 0
    height: int = 0
    peak: int = 0


def read_bytes(path: Path) -> bytes | str:
    """Read a regular file; never blocks on pipes or devices.

    Args:
        path: a file, or a member of an archive such as `a.tar/key.jpg`.

    Returns:
        Its bytes, or the reason why it cannot be read.
    """
    try:
        try:
            info = os.stat(path)
        except (NotADirectoryError, FileNotFoundError):
            member = tar_shards.read_member(path, MAX_BYTES)
            if member is None:
                raise
            return member
        if not stat.S_ISREG(info.st_mode):
            return "not a regular file"
        if info.st_size == 0:
            return "empty"
        if info.st_size > MAX_BYTES:
            return f"larger than {MAX_BYTES // 2**20} MiB"
        return path.read_bytes()
    except OSError as error:
        return describe_failure(path, error)


def describe_failure(path: Path, error: OSError) -> str:
    """Why a file cannot be opened; links that are broken and links in a circle are told apart."""
    if os.path.islink(path) and error.errno == errno.ELOOP:
        return "a link that leads back to itself"
    if os.path.islink(path) and error.errno in (errno.ENOENT, errno.ENOTDIR):
        return f"a broken link: {escape_surrogates(os.readlink(path))} does not exist"
    return f"cannot be read: {error.strerror}"


@contextmanager
def use_workers(count: int) -> Iterator[None]:
    """Choose how many threads decode images inside the block; 0 = one for each core."""
    token = _workers.set(count)
    try:
        yield
    finally:
        _workers.reset(token)


def chosen_workers() -> int:
    """Return what `use_workers` says, for processes that are started from here; 0 = one for each core."""
    return _workers.get()


def count_workers() -> int:
    """Return the number of threads that decode images."""
    return _workers.get() or os.cpu_count() or 1


@contextmanager
def thread_pool() -> Iterator[ThreadPoolExecutor]:
    """A thread for each core, or as many as `use_workers` says, without Pillow's warnings about what rules decide."""
    with ThreadPoolExecutor(count_workers()) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield pool


def decode_file(path: Path, preprocessing: Preprocessing | None) -> Decoded:
    """Read and decode a file, see `decode_bytes`."""
    content = read_bytes(path)
    return Decoded(None, content) if isinstance(content, str) else decode_bytes(content, preprocessing)


def decode_bytes(content: bytes, preprocessing: Preprocessing | None, max_pixels: int = MAX_PIXELS) -> Decoded:
    """Check, fully decode and resize an image.

    Args:
        content: bytes of the file.
        preprocessing: size and crop; None = only check.
        max_pixels: a larger image is refused before it is decoded.
    """
    max_pixels = min(max_pixels, MAX_PIXELS)
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
            reason = _check_size(width, height, preprocessing, max_pixels)
            if reason:
                return Decoded(None, reason, width, height)
            if preprocessing and image.format == "JPEG":
                scaled_width, scaled_height = compute_scaled_size(width, height, preprocessing)
                image.draft(None, (OVERSAMPLING * scaled_width, OVERSAMPLING * scaled_height))
            image.load()
            return _convert(image, preprocessing, (width, height))
    except Image.DecompressionBombError:
        return Decoded(None, f"more than {max_pixels} pixels")
    except UnidentifiedImageError:
        if content[4:12] in HEIC:
            return Decoded(None, "HEIC is not supported; convert it to JPEG or PNG")
        return Decoded(None, "not an image in a known format (" + ", ".join(FORMATS) + ")")
    except Exception as error:  # Pillow's decoders raise anything on damaged files; each is a reason, none a crash
        return Decoded(None, f"damaged: {type(error).__name__}: {str(error)[:120]}")


def decode_image(image: Image.Image, preprocessing: Preprocessing) -> Decoded:
    """Check, convert and resize an image that Pillow has opened, by the same rules; the image is not changed.

    Args:
        image: its current frame is used. A JPEG is decoded at full scale.
        preprocessing: size and crop.
    """
    width, height = image.size
    reason = _check_size(width, height, preprocessing, MAX_PIXELS)
    if reason:
        return Decoded(None, reason, width, height)
    try:
        return _convert(image, preprocessing, (width, height))
    except Exception as error:  # it may be read from its file only now, and that file be damaged
        return Decoded(None, f"damaged: {type(error).__name__}: {str(error)[:120]}", width, height)


def _convert(image: Image.Image, preprocessing: Preprocessing | None, size: tuple[int, int]) -> Decoded:
    """Convert and resize an image; `size` is that of the original."""
    peak, white = find_peak(image), (preprocessing or Preprocessing()).white()
    if peak > white and preprocessing and preprocessing.bits:
        return Decoded(None, f"its value {peak} {BEYOND} {preprocessing.bits} bits", *size, peak)
    rgb = convert_to_rgb(image, white)
    return Decoded(None if preprocessing is None else to_pixels(rgb, preprocessing), None, *size, peak)


def to_pixels(rgb: Image.Image, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Resize and crop an upright RGB image to pixels [size, size, C] of as many channels as the network takes."""
    if preprocessing.channels == 1:
        return np.asarray(resize(rgb.convert("L"), preprocessing))[:, :, None]
    return np.asarray(resize(rgb, preprocessing))


def read_peak(content: bytes) -> int:
    """Read the largest value of a readable image of 16 bits; 0 for others, of which only the header is read."""
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        return find_peak(image)


def find_peak(image: Image.Image) -> int:
    """Find the largest value of an image of 16 bits; 0 for others."""
    return max(0, int(np.asarray(image).max())) if image.mode.startswith("I") else 0


def convert_to_rgb(image: Image.Image, white: int = 65535) -> Image.Image:
    """Convert an image of any mode to upright 8-bit RGB.

    Args:
        image: the image.
        white: the value of a 16-bit image that becomes white.

    Raises:
        ValueError: a float image, whose range nobody knows.
    """
    image = _rotate_upright(image)
    if image.mode == "F":
        raise ValueError("a float image: its range is unknown")
    if image.mode.startswith("I"):  # 16 bits; Pillow's own conversion clips instead of scaling
        values = np.asarray(image).astype(np.int64)
        return Image.fromarray((values.clip(0, white) / (white / 255.0)).round().astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _check_size(width: int, height: int, preprocessing: Preprocessing | None, max_pixels: int) -> str | None:
    if width * height > max_pixels:
        return f"{width}x{height} is more than {max_pixels} pixels"
    if min(width, height) < MIN_SIDE:
        return f"{width}x{height} is smaller than {MIN_SIDE} pixels"
    if max(width, height) / min(width, height) > MAX_ASPECT:
        return f"{width}x{height} is longer than {MAX_ASPECT:g} times its width"
    scaled_width, scaled_height = compute_scaled_size(width, height, preprocessing) if preprocessing else (0, 0)
    if scaled_width * scaled_height > MAX_PIXELS:
        target = f"{scaled_width}x{scaled_height}"
        return f"{width}x{height} would be resized to {target}: more than {MAX_PIXELS} pixels"
    return None


def find_remarks(content: bytes, suffix: str) -> tuple[str, ...]:
    """List what the rules did to a readable image beyond resizing; nothing for most images."""
    remarks = []
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        kind = "JPEG" if image.format == "MPO" else image.format  # a JPEG with a second view
        if kind == image.format and _is_animated(image):
            remarks.append("several frames: the first is used")
        if image.mode == "CMYK" and "icc_profile" not in image.info:
            remarks.append("CMYK without a color profile: colors are approximate")
        if image.mode.startswith("I"):
            remarks.append("16 bits a channel: scaled to 8")
        if SUFFIXES.get(suffix.lower(), kind) != kind:
            remarks.append("named as another format: decoded by content")
    return tuple(remarks)


def _is_animated(image: Image.Image) -> bool:
    """Whether there is more than one frame; True where the next one is damaged."""
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # readers of later frames raise anything
        return True


def _rotate_upright(image: Image.Image) -> Image.Image:
    """Rotate as the EXIF data says; unchanged where they are damaged."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # readers of EXIF raise anything; the pixels are sound
        return image
