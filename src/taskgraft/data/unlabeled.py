"""Images without labels, which a method with a teacher learns from."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from taskgraft.data import pixel_cache, transforms
from taskgraft.data.pixel_cache import LoadedPixels
from taskgraft.data.streaming import find_media
from taskgraft.data.transforms import Preprocessing
from taskgraft.errors import DataError
from taskgraft.results.files import escape_surrogates, fingerprint
from taskgraft.types import Callbacks, Images


class UnlabeledImages(NamedTuple):
    """Images below some paths, the digest of each, what the record says of each path, and the bits of 16-bit files."""

    images: Images
    digests: tuple[str, ...]
    described: dict[str, dict[str, Any]]
    bits: int | None


def load_unlabeled(
    paths: Sequence[Path],
    preprocessing: Preprocessing,
    cache: Path | None,
    callbacks: Callbacks,
    flag: str = "--unlabeled",
) -> UnlabeledImages:
    """Decode all images below some paths, at any depth; files that are not images are left out.

    How many bits 16-bit files use is found where the preprocessing does not say.

    Args:
        paths: folders, image files and tar archives.
        preprocessing: how images are brought to size and normalized.
        cache: cache folder, from which the pixels are mapped; None = everything in memory.
        callbacks: progress.
        flag: the flag that names the paths, for messages.

    Raises:
        DataError: a path does not exist, or there is no readable image below it.
    """
    pixels, names, digests, described = [], [], list[str](), {}
    listed = [[str(item.path) for item in find_media([path]).items if not item.is_video] for path in paths]

    def load(preprocessing: Preprocessing) -> list[LoadedPixels]:
        return [_load(*one, preprocessing, cache, callbacks) for one in zip(paths, listed, strict=True)]

    sets, bits = load(preprocessing), preprocessing.bits
    if not bits:
        peak = max((loaded.peak for loaded in sets), default=0)
        bits = transforms.find_bits(peak)
        if bits not in (None, 16):
            callbacks.info(transforms.describe_bits(peak, bits))
            sets = load(preprocessing._replace(bits=bits))
    for number, (path, files, loaded) in enumerate(zip(paths, listed, sets, strict=True), 1):
        if not len(loaded.pixels):
            raise DataError(f"{flag} {escape_surrogates(str(path))}: no readable image; give a folder of images")
        pixels.append(loaded.pixels)
        names += [file for row, file in enumerate(files) if row not in loaded.reasons]
        digests += (own := [digest.tobytes().hex() for digest in loaded.digests])
        described[f"unlabeled: {path.name}" if number == 1 else f"unlabeled {number}: {path.name}"] = {
            "source": escape_surrogates(str(path)),
            "fingerprint": fingerprint(own),
            "images": {"train": len(loaded.pixels)},
            "notes": [],
            "excluded": [[escape_surrogates(files[row]), reason] for row, reason in loaded.reasons.items()][:1000],
            "excluded_count": len(loaded.reasons),
        }
    images = Images(
        pixels[0] if len(pixels) == 1 else torch.cat(pixels), {}, tuple(names), preprocessing.mean, preprocessing.std
    )
    return UnlabeledImages(images, tuple(digests), described, bits)


def _load(
    path: Path, files: Sequence[str], preprocessing: Preprocessing, cache: Path | None, callbacks: Callbacks
) -> LoadedPixels:
    root = path if path.is_dir() else path.parent
    return pixel_cache.load_pixels(
        root,
        [str(Path(file).relative_to(root)) for file in files],
        preprocessing,
        cache=cache,
        name=f"unlabeled-{fingerprint([str(path.resolve())])[:16]}",
        progress=partial(callbacks.progress, f"reading {path.name}"),
    )
