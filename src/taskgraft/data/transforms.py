"""The preprocessing of a model: size, crop, interpolation and normalization, as one line of text."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from PIL import Image

from taskgraft.errors import DataError

CROPS = ("squash", "center", "border")
FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
NORMS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
MAX_SIZE = 4096  # side of the input in pixels
MIN_CROP_PCT = 0.01  # less would enlarge the image without bounds
MAX_STATISTIC = 1e6  # of a mean or standard deviation; those of pixels lie between 0 and 1
SYNTAX = (
    "a size such as 96, a crop (squash, center, center:0.875, border), a filter (bilinear, bicubic, …), "
    "a normalization (imagenet, half, none, mean=R,G,B std=R,G,B, or for gray mean=L std=L), the bits that 16-bit "
    "files use (12bit, …)"
)
DEPTHS = {f"{bits}bit": bits for bits in range(8, 17)}
CHANNELS = {1: "gray", 3: "RGB"}  # that a network may take
FOUND_DEPTHS = (8, 10, 12)  # what is taken for a camera's depth; more is dark at worst, and all 16 may be meant


class Preprocessing(NamedTuple):
    """The preprocessing that a model was trained with.

    `size` in pixels (square). `crop`: "squash" resizes the whole image, aspect not kept; "center" resizes the
    short side to size / crop_pct and cuts the middle; "border" fits the image in and pads with black.
    `mean` and `std` apply to values scaled to [0, 1]; of one number each, they are for a network that takes gray images
    in one channel. `bits`: how many bits of a channel 16-bit files use: a camera's
    10 or 12 are white at 1023 or 4095; None = no such file was seen, and all 16 count.
    """

    size: int = 224
    crop: str = "center"
    crop_pct: float = 0.875
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = NORMS["imagenet"][0]
    std: tuple[float, ...] = NORMS["imagenet"][1]
    bits: int | None = None

    @property
    def channels(self) -> int:
        """The number of channels of the input: 3 for RGB, 1 for gray."""
        return len(self.mean)

    def with_channels(self, channels: int) -> Preprocessing:
        """Return it for a network of another number of channels, as timm's loaders do: they average mean and std."""
        return self._replace(mean=_adapt(self.mean, channels), std=_adapt(self.std, channels))

    def to_text(self) -> str:
        """Format as the line that `parse_preprocessing` reads."""
        crop = f"{self.crop}:{self.crop_pct}" if self.crop == "center" else self.crop
        depth = f" {self.bits}bit" if self.bits else ""
        return f"{self.size} {crop} {self.interpolation} {self.normalization()}{depth}"

    def white(self) -> int:
        """Return the value of a 16-bit file that is white."""
        return 2 ** (self.bits or 16) - 1

    def normalization(self) -> str:
        """Format mean and standard deviation, by name where they have one."""
        names = [name for name, pair in NORMS.items() if pair == (self.mean, self.std)]
        return names[0] if names else f"mean={_join(self.mean)} std={_join(self.std)}"

    def describe(self) -> str:
        """Describe in words what is done to an image."""
        region = {
            "squash": "the whole image, squashed",
            "center": f"the middle square of {100 * self.crop_pct:.4g} % of the shorter side",
            "border": "the whole image on black",
        }[self.crop]
        norm = {"none": "not normalized", "half": "normalized to -1..1", "imagenet": "normalized as for ImageNet"}.get(
            self.normalization(), f"normalized with {self.normalization()}"
        )
        gray = ", in gray" if self.channels == 1 else ""
        depth = f", 16-bit files read as {self.bits} bits" if self.bits else ""
        return f"{region}, at {self.size} × {self.size} px{gray}, {self.interpolation}, {norm}{depth}"


def parse_preprocessing(text: str, default: Preprocessing) -> Preprocessing:
    """Parse a line such as '96 squash bilinear imagenet'; what it leaves out is as in `default`.

    Raises:
        DataError: a word is not a size, crop, filter or normalization, or the normalization is for another number of
            channels than that of `default`.
    """
    fields = _parse_fields(text, default.channels)
    preprocessing = default._replace(**fields)
    for name in ("mean", "std"):
        count = len(getattr(preprocessing, name))
        if count != default.channels:
            raise DataError(
                f"preprocessing {text!r}: {name} has {count} number{'s' * (count > 1)}, but the network takes "
                f"{CHANNELS[default.channels]} images; give {default.channels}"
            )
    if min(preprocessing.std) <= 0:
        raise DataError(f"preprocessing {text!r}: std is not above 0; give numbers above 0")
    return preprocessing


def find_channels(text: str) -> int | None:
    """Find how many channels a line's mean or standard deviation is for; None where it gives no numbers."""
    fields = _parse_fields(text, 0)
    return next((count for name in ("mean", "std") if (count := len(fields.get(name, ())))), None)


def list_fields(text: str) -> set[str]:
    """List the fields of a `Preprocessing` that a line sets."""
    return set(_parse_fields(text, 3))


def _parse_fields(text: str, channels: int) -> dict[str, Any]:
    """Parse the fields that a line sets; names of normalizations are for the given number of channels."""
    fields: dict[str, Any] = {}
    for word in text.split():
        name, _, value = word.partition("=")
        crop, _, fraction = word.partition(":")
        if re.fullmatch(r"[0-9]{1,4}", word) and 8 <= int(word) <= MAX_SIZE:
            fields["size"] = int(word)
        elif crop in CROPS and (crop == "center" or not fraction):
            fields["crop"] = crop
            if fraction:
                fields["crop_pct"] = _parse_crop_pct(fraction, text)
        elif word in FILTERS:
            fields["interpolation"] = word
        elif word in NORMS:
            fields["mean"], fields["std"] = (_adapt(values, channels) for values in NORMS[word])
        elif word in DEPTHS:
            fields["bits"] = DEPTHS[word]
        elif name in ("mean", "std") and value:
            fields[name] = _parse_statistics(value, text)
        else:
            raise DataError(f"preprocessing {text!r}: {word!r} is not understood; write {SYNTAX}")
    return fields


def is_complete(text: str) -> bool:
    """Whether a line sets every field, so that nothing is taken from a default."""
    fields = _parse_fields(text, 3)
    is_cropped = "crop_pct" in fields or fields.get("crop") in ("squash", "border")
    return is_cropped and fields.keys() >= {"size", "crop", "interpolation", "mean", "std"}


def from_timm(config: Mapping[str, Any], source: str = "timm") -> Preprocessing:
    """Convert timm's `pretrained_cfg`; what is missing there gets timm's own defaults.

    Args:
        config: `pretrained_cfg` of a model or file.
        source: its origin, for the message.

    Raises:
        DataError: an invalid value, with which reading images would fail or fill the memory.
    """
    default = Preprocessing()
    input_size = config.get("input_size") or (3, default.size, default.size)
    crop_pct = config.get("crop_pct") or default.crop_pct
    mean, std = config.get("mean") or default.mean, config.get("std") or default.std
    crop, interpolation = config.get("crop_mode"), config.get("interpolation")
    is_valid = {
        "input_size": _is_shape(input_size) and 8 <= input_size[-1] <= MAX_SIZE,
        "crop_pct": isinstance(crop_pct, int | float) and MIN_CROP_PCT <= crop_pct <= 1,
        "mean": _are_statistics(mean),
        "std": _are_statistics(std) and min(std) > 0,
    }
    for name, valid in is_valid.items():
        if not valid:
            raise DataError(
                f"{source}: pretrained_cfg has {name} {str(config.get(name))[:60]}, which is invalid; fix the file"
            )
    return Preprocessing(
        size=input_size[-1],
        crop=crop if crop in CROPS else default.crop,
        crop_pct=float(crop_pct),
        interpolation=str(interpolation) if interpolation in list(FILTERS) else default.interpolation,
        mean=tuple(mean),
        std=_adapt(tuple(std), len(mean)),
    )


def _is_shape(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 3 and all(type(side) is int for side in value)


def _are_statistics(values: Any) -> bool:
    are_numbers = isinstance(values, list | tuple) and all(isinstance(value, int | float) for value in values)
    return are_numbers and len(values) in CHANNELS and all(abs(value) <= MAX_STATISTIC for value in values)


def _adapt(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    return values if len(values) == channels else (sum(values) / len(values),) * channels


def to_timm(preprocessing: Preprocessing) -> dict[str, Any]:
    """Convert to keys of timm's `pretrained_cfg`, so that timm's own transforms do the same."""
    return {
        "input_size": [preprocessing.channels, preprocessing.size, preprocessing.size],
        "interpolation": preprocessing.interpolation,
        "crop_pct": preprocessing.crop_pct if preprocessing.crop == "center" else 1.0,
        "crop_mode": preprocessing.crop,
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
    }


def find_bits(peak: int) -> int | None:
    """Find how many bits 16-bit files use, from the brightest value of all of them; None for 0, no such file."""
    return next((bits for bits in FOUND_DEPTHS if peak < 2**bits), 16) if peak else None


def describe_bits(peak: int, bits: int) -> str:
    """Say what was found of 16-bit files that do not use all of their bits."""
    return (
        f"the largest value of the 16-bit images is {peak}: read as {bits} bits, in predict and serve too; "
        "--preprocessing 16bit reads them as they are"
    )


def resize(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """Resize and crop an RGB or gray image to [size, size] with Pillow's filters."""
    size, resample = preprocessing.size, FILTERS[preprocessing.interpolation]
    width, height = compute_scaled_size(*image.size, preprocessing)
    if preprocessing.crop == "squash":
        return image.resize((width, height), resample)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.resize((width, height), resample).crop((left, top, left + size, top + size))


def compute_scaled_size(width: int, height: int, preprocessing: Preprocessing) -> tuple[int, int]:
    """Compute the width and height that an image is resized to before it is cropped or padded."""
    if preprocessing.crop == "squash":
        return preprocessing.size, preprocessing.size
    if preprocessing.crop == "border":
        factor = preprocessing.size / max(width, height)
        return max(1, round(width * factor)), max(1, round(height * factor))
    # rounded down where torchvision and timm do: their pixels are what a parent was measured on
    short, side = math.floor(preprocessing.size / preprocessing.crop_pct), min(width, height)
    return int(short * width / side), int(short * height / side)


def _join(values: tuple[float, ...]) -> str:
    return ",".join(map(str, values))  # every digit: the line must read back as the same preprocessing


def _parse_statistics(text: str, line: str) -> tuple[float, ...]:
    try:
        values = tuple(map(float, text.split(",")))
    except ValueError:
        values = ()
    if len(values) not in CHANNELS or not all(abs(value) <= MAX_STATISTIC for value in values):
        raise DataError(
            f"preprocessing {line!r}: {text!r} is not three numbers, or one for gray; write them as in "
            "0.485,0.456,0.406"
        )
    return values


def _parse_crop_pct(text: str, line: str) -> float:
    try:
        crop_pct = float(text)
    except ValueError:
        crop_pct = 0.0
    if not MIN_CROP_PCT <= crop_pct <= 1:
        raise DataError(
            f"preprocessing {line!r}: the fraction {text!r} to crop is out of range; use one from {MIN_CROP_PCT} to 1"
        )
    return crop_pct
