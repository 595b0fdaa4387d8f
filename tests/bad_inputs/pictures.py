"""Bad inputs 1 to 19: single images, in a data folder, to `predict`, and sent to the server."""

from __future__ import annotations

import csv
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from bad_inputs.trying import TRAIN, Case, Place, Post, Told, Try

STARTED: list[object] = []  # subprocesses that were started while a row ran


def picture(seed: int = 0, size: tuple[int, int] = (40, 32)) -> Image.Image:
    """Soft noise, so that lossy formats keep it."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)  # pyright: ignore[reportArgumentType]
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_bomb(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes that says it is this large."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(100_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def before_scan(jpeg: bytes, *segments: tuple[int, bytes]) -> bytes:
    """A JPEG with further segments (marker, content) after its start."""
    extra = b"".join(b"\xff" + bytes([marker]) + struct.pack(">H", len(data) + 2) + data for marker, data in segments)
    return jpeg[:2] + extra + jpeg[2:]


def rows_of(path: Path) -> dict[str, str]:
    with path.open(newline="", encoding="utf-8") as file:
        return {row[0]: row[1] for row in list(csv.reader(file))[1:]}


def refused(number: int, what: str, promise: str, files: dict[str, bytes], reason: str, changed: str = "") -> Case:
    """Images that cannot be used: each is left out with a reason, in the same words everywhere."""

    def make(place: Place) -> Sequence[Try | Post]:
        good = sorted((place.data / "blue").iterdir())[0]
        for name, data in files.items():
            (place.data / "blue" / name).write_bytes(data)
        bad = [place.data / "blue" / name for name in files]

        def excluded(_: Place, told: Told) -> str:
            found = dict(json.loads(told.out)["excluded"])
            assert {f"blue/{name}" for name in files} <= found.keys()
            assert all(reason in found[f"blue/{name}"] for name in files), found
            return "excluded: " + found[f"blue/{next(iter(files))}"][:70]

        def listed(place: Place, told: Told) -> str:
            found = rows_of(place.out / "excluded.csv")
            assert all(reason in found[f"blue/{name}"] for name in files), found
            assert not {f"blue/{name}" for name in files} & rows_of(place.out / "split.csv").keys()
            return "trained, the rest in excluded.csv"

        def answered(_: Place, told: Told) -> str:
            rows = [json.loads(line) for line in told.out.splitlines()]
            assert "tasks" in rows[0]
            assert all(reason in row["error"] for row in rows[1:]), rows
            assert len(rows) == 1 + len(files)
            assert not STARTED
            return "a row with the error"

        return [
            Try(("check", place.data, "--json"), look=excluded),
            Try(("train", place.data, place.out, *TRAIN), look=listed),
            Try(("predict", place.parent, good, *bad), look=answered),
            *(Post("/predict", data, (422,) if data else (400,), (reason,)) for data in files.values()),
        ]

    return Case(number, what, promise, make, changed)


def accepted(
    number: int,
    what: str,
    promise: str,
    files: dict[str, bytes],
    same: Image.Image | None,
    remark: str = "",
    changed: str = "",
) -> Case:
    """Images that are used: all answered as `same` is, a remark in `check`, nothing excluded."""  # fmt: skip

    def make(place: Place) -> Sequence[Try | Post]:
        for name, data in files.items():
            (place.data / "blue" / name).write_bytes(data)
        paths = [place.data / "blue" / name for name in files]
        if same is not None:
            same.save(place.root / "same.png")
            paths.insert(0, place.root / "same.png")

        def noted(_: Place, told: Told) -> str:
            found = json.loads(told.out)
            assert not found["excluded"], found["excluded"]
            assert not remark or any(remark in key for key in found["remarks"]), found["remarks"]
            return next((f"{key} ({len(value)})" for key, value in found["remarks"].items() if remark in key), "used")

        def used(place: Place, told: Told) -> str:
            assert {f"blue/{name}" for name in files} <= rows_of(place.out / "split.csv").keys()
            return "trained on"

        def answered(_: Place, told: Told) -> str:
            rows = [json.loads(line)["tasks"] for line in told.out.splitlines()]
            shares = [row["shape"] for row in rows]
            assert same is None or all(share == shares[0] for share in shares), shares
            return "answered" if same is None else "answered as the plain image"

        return [
            Try(("check", place.data, "--json"), (0, 1), look=noted),
            Try(("train", place.data, place.out, *TRAIN), look=used),
            Try(("predict", place.parent, *paths), look=answered),
            *(Post("/predict", data) for data in files.values()),
        ]

    return Case(number, what, promise, make, changed)


def turned(orientation: int) -> bytes:
    """An image as a camera that was held so stores it."""
    undo = {
        1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = picture()
    return saved(image if undo is None else image.transpose(undo), "PNG", exif=exif)


def sixteen(kind: str) -> bytes:
    values = np.asarray(picture().convert("L")).astype(np.uint16) * 257
    return saved(Image.fromarray(values), kind)


def see_through(mode: str) -> tuple[bytes, Image.Image]:
    """An image whose left half is transparent, and the same on white."""
    image = picture().convert("L" if mode == "LA" else "RGB")
    mask = Image.new("L", image.size, 255)
    mask.paste(0, (0, 0, 20, 32))
    white = Image.new(image.mode, image.size, "white")
    white.paste(image, (0, 0), mask)
    if mode == "P":
        flat = Image.fromarray(np.tile(np.arange(4, dtype=np.uint8), (32, 10)))
        flat.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 90, 90, 90])
        shown = flat.convert("RGB")
        shown.paste("white", (0, 0, 40, 32), Image.fromarray((np.asarray(flat) == 2).astype(np.uint8) * 255))
        return saved(flat, "PNG", transparency=2), shown
    image.putalpha(mask)
    return saved(image, "PNG"), white.convert("RGB")


def frames(kind: str) -> bytes:
    return saved(picture().convert("RGB"), kind, save_all=True, append_images=[picture(1), picture(2)],
                 **({"lossless": True} if kind == "WEBP" else {}))  # fmt: skip


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("evil.txt", "x" * 1000)
    return file.getvalue()


def commented() -> bytes:
    """A PNG with ten megabytes of text beside its pixels."""
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "x" * 10_000_000)
    return saved(picture(), "PNG", pnginfo=info)


def cut(share: float) -> bytes:
    whole = saved(picture(size=(200, 200)), "JPEG", quality=95)
    return whole[: int(share * len(whole))]


JPEG = saved(picture(), "JPEG", quality=95)
BROKEN_EXIF = b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01\x03\0\xff\xff\xff\xff\x06\0\0\0" + bytes(20)
HEIC = struct.pack(">I", 24) + b"ftypheic" + bytes(4) + b"mif1heic" + bytes(200)
FLOATS = saved(Image.fromarray(np.linspace(0, 1, 1024, dtype=np.float32).reshape(32, 32)), "TIFF")
EIGHT = picture().convert("L").convert("RGB")
ONE = picture().convert("1")
CMYK = saved(Image.new("CMYK", (40, 32), (0, 200, 200, 10)), "JPEG", quality=95)
FOREIGN = {
    "x.eps": saved(picture(), "EPS"),
    "x.psd": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 32, 32, 8, 3) + bytes(200),
    "x.svg": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    "x.pdf": b"%PDF-1.4\n" + bytes(200),
}
KNOWN = "not an image in a known format"


def _palette(mode: str, what: str) -> Case:
    data, same = see_through(mode)
    return accepted(10, what, "laid on white", {"odd.png": data}, same)


CASES: list[Case] = [
    refused(1, "file of 0 bytes", "excluded: empty", {"odd.jpg": b""}, "empty"),
    refused(2, "HTML named .jpg", "excluded: not an image", {"odd.jpg": b"<html>404 Not Found</html>" * 9}, KNOWN),
    refused(
        3,
        "JPEG cut at 10, 50, 99 %",
        "excluded after the whole was decoded",
        {f"{share}.jpg": cut(share / 100) for share in (10, 50, 99)},
        "damaged",
    ),
    refused(
        4,
        "JPEG without its end marker",
        "one rule in train, predict and serve: damaged",
        {"odd.jpg": JPEG[:-2]},
        "damaged",
    ),
    refused(
        5,
        "PNG bomb, 30,000 x 30,000",
        "refused by its header, memory flat",
        {"odd.png": png_bomb(30000, 30000)},
        "pixels",
    ),
    refused(
        6,
        "between one and two times the pixel limit",
        "refused, not only warned of",
        {"odd.png": png_bomb(10000, 10000)},
        "pixels",
    ),
    accepted(
        7,
        "CMYK JPEG without a profile",
        "converted, and counted by check",
        {"odd.jpg": CMYK},
        None,
        "CMYK without a color profile",
    ),
    accepted(
        8,
        "16-bit PNG and TIFF",
        "scaled to 8 bits, not clipped",
        {"odd.png": sixteen("PNG"), "odd.tiff": sixteen("TIFF")},
        EIGHT,
        "16 bits",
    ),
    refused(
        9,
        "float TIFF",
        "excluded with its reason",
        {"odd.tiff": FLOATS},
        "float image",
        "no --float-range: nobody has asked for it, and a flag that guesses a range would guess for every file",
    ),
    _palette("RGBA", "RGBA"),
    _palette("LA", "grey with alpha"),
    _palette("P", "palette with a transparent colour"),
    accepted(11, "one bit and grey", "as RGB", {"1.png": saved(ONE, "PNG")}, ONE.convert("RGB")),
    accepted(11, "grey", "as RGB", {"l.png": saved(picture().convert("L"), "PNG")}, EIGHT),
    accepted(
        12, "EXIF orientation 1 to 4", "the same tensor", {f"{n}.png": turned(n) for n in (1, 2, 3, 4)}, picture()
    ),
    accepted(
        12, "EXIF orientation 5 to 8", "the same tensor", {f"{n}.png": turned(n) for n in (5, 6, 7, 8)}, picture()
    ),
    accepted(
        13,
        "animated GIF",
        "its first frame, counted by check",
        {"odd.gif": frames("GIF")},
        None,
        "several frames",
        "counted by check, not by the training report: training keeps pixels, not formats",
    ),
    accepted(
        13,
        "animated WebP, TIFF of pages",
        "its first frame, counted by check",
        {"odd.webp": frames("WEBP"), "odd.tiff": frames("TIFF")},
        picture(),
        "several frames",
    ),
    accepted(
        14,
        "PNG named .jpg",
        "decoded by content, noted by check",
        {"odd.jpg": saved(picture(), "PNG")},
        picture(),
        "named as another format",
    ),
    refused(15, "EPS, PSD, SVG, PDF", "refused, no process is started", FOREIGN, KNOWN),
    refused(
        16,
        "HEIC",
        "its name and what to do",
        {"odd.heic": HEIC},
        "HEIC is not supported; convert",
        "no extra for HEIC: the reason says to convert. A decoder of HEVC would be the one part that is not "
        "free of patents",
    ),
    refused(
        17,
        "1 x 1, 3 x 40",
        "under the least side",
        {"1.png": saved(Image.new("RGB", (1, 1)), "PNG"), "3.png": saved(Image.new("RGB", (3, 40)), "PNG")},
        "smaller than 4 pixels",
    ),
    refused(
        17,
        "10 x 20,000",
        "longer than 100 times its width",
        {"odd.png": saved(Image.new("RGB", (10, 20000)), "PNG")},
        "longer than 100 times",
    ),
    accepted(
        18,
        "damaged EXIF, ICC and XMP",
        "decoded, none of it kept",
        {
            "exif.jpg": before_scan(JPEG, (0xE1, BROKEN_EXIF)),
            "icc.jpg": before_scan(JPEG, (0xE2, b"ICC_PROFILE\0\x01\x01" + bytes(50))),
            "xmp.jpg": before_scan(JPEG, (0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta" + b"\xff" * 99)),
        },
        Image.open(io.BytesIO(JPEG)),
    ),
    accepted(18, "comment of 10 MB", "decoded, none of it kept", {"odd.png": commented()}, picture()),
    accepted(
        19, "JPEG with a ZIP appended", "the image alone", {"odd.jpg": JPEG + zipped()}, Image.open(io.BytesIO(JPEG))
    ),
]
