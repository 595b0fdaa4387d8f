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

from bad_inputs.case import TRAIN, Case, Command, Output, Post, Workspace

STARTED_PROCESSES: list[object] = []  # subprocesses that were started while a row ran


def make_image(seed: int = 0, size: tuple[int, int] = (40, 32)) -> Image.Image:
    """Soft noise, so that lossy formats keep it."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
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


def refused(number: int, name: str, promise: str, files: dict[str, bytes], reason: str, note: str = "") -> Case:
    """Images that cannot be used: each is left out with a reason, in the same words everywhere."""

    def make(workspace: Workspace) -> Sequence[Command | Post]:
        good = sorted((workspace.data / "blue").iterdir())[0]
        for name, data in files.items():
            (workspace.data / "blue" / name).write_bytes(data)
        bad = [workspace.data / "blue" / name for name in files]

        def excluded(_: Workspace, output: Output) -> str:
            result = dict(json.loads(output.stdout)["excluded"])
            assert {f"blue/{name}" for name in files} <= result.keys()
            assert all(reason in result[f"blue/{name}"] for name in files), result
            return "excluded: " + result[f"blue/{next(iter(files))}"][:70]

        def is_excluded(workspace: Workspace, output: Output) -> str:
            result = rows_of(workspace.out / "excluded.csv")
            assert all(reason in result[f"blue/{name}"] for name in files), result
            assert not {f"blue/{name}" for name in files} & rows_of(workspace.out / "split.csv").keys()
            return "trained, the rest in excluded.csv"

        def is_predicted(_: Workspace, output: Output) -> str:
            rows = [json.loads(line) for line in output.stdout.splitlines()]
            assert "tasks" in rows[0]
            assert all(reason in row["error"] for row in rows[1:]), rows
            assert len(rows) == 1 + len(files)
            assert not STARTED_PROCESSES
            return "a row with the error"

        return [
            Command(("check", workspace.data, "--json"), check=excluded),
            Command(("train", workspace.data, workspace.out, *TRAIN), check=is_excluded),
            Command(("predict", workspace.parent, good, *bad), check=is_predicted),
            *(Post("/predict", data, (422,) if data else (400,), (reason,)) for data in files.values()),
        ]

    return Case(number, name, promise, make, note)


def accepted(
    number: int,
    name: str,
    promise: str,
    files: dict[str, bytes],
    same: Image.Image | None,
    remark: str = "",
    note: str = "",
) -> Case:
    """Images that are used: all answered as `same` is, a remark in `check`, nothing excluded."""  # fmt: skip

    def make(workspace: Workspace) -> Sequence[Command | Post]:
        for name, data in files.items():
            (workspace.data / "blue" / name).write_bytes(data)
        paths = [workspace.data / "blue" / name for name in files]
        if same is not None:
            same.save(workspace.tmp_path / "same.png")
            paths.insert(0, workspace.tmp_path / "same.png")

        def is_remarked(_: Workspace, output: Output) -> str:
            result = json.loads(output.stdout)
            assert not result["excluded"], result["excluded"]
            assert not remark or any(remark in key for key in result["remarks"]), result["remarks"]
            return next((f"{key} ({len(value)})" for key, value in result["remarks"].items() if remark in key), "used")

        def is_trained_on(workspace: Workspace, output: Output) -> str:
            assert {f"blue/{name}" for name in files} <= rows_of(workspace.out / "split.csv").keys()
            return "trained on"

        def is_predicted(_: Workspace, output: Output) -> str:
            rows = [json.loads(line)["tasks"] for line in output.stdout.splitlines()]
            answers = [row["shape"] for row in rows]
            assert same is None or all(row == answers[0] for row in answers), answers
            return "answered" if same is None else "answered as the plain image"

        return [
            Command(("check", workspace.data, "--json"), (0, 1), check=is_remarked),
            Command(("train", workspace.data, workspace.out, *TRAIN), check=is_trained_on),
            Command(("predict", workspace.parent, *paths), check=is_predicted),
            *(Post("/predict", data) for data in files.values()),
        ]

    return Case(number, name, promise, make, note)


def rotated(orientation: int) -> bytes:
    """An image as a camera that was held so stores it."""
    undo = {
        1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = make_image()
    return encode(image if undo is None else image.transpose(undo), "PNG", exif=exif)


def sixteen_bit(kind: str) -> bytes:
    values = np.asarray(make_image().convert("L")).astype(np.uint16) * 257
    return encode(Image.fromarray(values), kind)


def transparent(mode: str) -> tuple[bytes, Image.Image]:
    """An image whose left half is transparent, and the same on white."""
    image = make_image().convert("L" if mode == "LA" else "RGB")
    mask = Image.new("L", image.size, 255)
    mask.paste(0, (0, 0, 20, 32))
    white = Image.new(image.mode, image.size, "white")
    white.paste(image, (0, 0), mask)
    if mode == "P":
        flat = Image.fromarray(np.tile(np.arange(4, dtype=np.uint8), (32, 10)))
        flat.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 90, 90, 90])
        opaque = flat.convert("RGB")
        opaque.paste("white", (0, 0, 40, 32), Image.fromarray((np.asarray(flat) == 2).astype(np.uint8) * 255))
        return encode(flat, "PNG", transparency=2), opaque
    image.putalpha(mask)
    return encode(image, "PNG"), white.convert("RGB")


def animation(kind: str) -> bytes:
    return encode(make_image().convert("RGB"), kind, save_all=True, append_images=[make_image(1), make_image(2)],
                 **({"lossless": True} if kind == "WEBP" else {}))  # fmt: skip


def zip_file() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("evil.txt", "x" * 1000)
    return file.getvalue()


def with_comment() -> bytes:
    """A PNG with ten megabytes of text beside its pixels."""
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "x" * 10_000_000)
    return encode(make_image(), "PNG", pnginfo=info)


def truncated(row: float) -> bytes:
    intact = encode(make_image(size=(200, 200)), "JPEG", quality=95)
    return intact[: int(row * len(intact))]


JPEG = encode(make_image(), "JPEG", quality=95)
BROKEN_EXIF = b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01\x03\0\xff\xff\xff\xff\x06\0\0\0" + bytes(20)
HEIC = struct.pack(">I", 24) + b"ftypheic" + bytes(4) + b"mif1heic" + bytes(200)
FLOATS = encode(Image.fromarray(np.linspace(0, 1, 1024, dtype=np.float32).reshape(32, 32)), "TIFF")
GREY = make_image().convert("L").convert("RGB")
ONE_BIT = make_image().convert("1")
CMYK = encode(Image.new("CMYK", (40, 32), (0, 200, 200, 10)), "JPEG", quality=95)
FOREIGN = {
    "x.eps": encode(make_image(), "EPS"),
    "x.psd": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 32, 32, 8, 3) + bytes(200),
    "x.svg": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    "x.pdf": b"%PDF-1.4\n" + bytes(200),
}
UNKNOWN_FORMAT = "not an image in a known format"


def _palette(mode: str, name: str) -> Case:
    data, same = transparent(mode)
    return accepted(10, name, "laid on white", {"odd.png": data}, same)


CASES: list[Case] = [
    refused(1, "file of 0 bytes", "excluded: empty", {"odd.jpg": b""}, "empty"),
    refused(
        2, "HTML named .jpg", "excluded: not an image", {"odd.jpg": b"<html>404 Not Found</html>" * 9}, UNKNOWN_FORMAT
    ),
    refused(
        3,
        "JPEG cut at 10, 50, 99 %",
        "excluded after the whole was decoded",
        {f"{row}.jpg": truncated(row / 100) for row in (10, 50, 99)},
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
        {"odd.png": sixteen_bit("PNG"), "odd.tiff": sixteen_bit("TIFF")},
        GREY,
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
    accepted(11, "one bit and grey", "as RGB", {"1.png": encode(ONE_BIT, "PNG")}, ONE_BIT.convert("RGB")),
    accepted(11, "grey", "as RGB", {"l.png": encode(make_image().convert("L"), "PNG")}, GREY),
    accepted(
        12, "EXIF orientation 1 to 4", "the same tensor", {f"{n}.png": rotated(n) for n in (1, 2, 3, 4)}, make_image()
    ),
    accepted(
        12, "EXIF orientation 5 to 8", "the same tensor", {f"{n}.png": rotated(n) for n in (5, 6, 7, 8)}, make_image()
    ),
    accepted(
        13,
        "animated GIF",
        "its first frame, counted by check",
        {"odd.gif": animation("GIF")},
        None,
        "several frames",
        "counted by check, not by the training report: training keeps pixels, not formats",
    ),
    accepted(
        13,
        "animated WebP, TIFF of pages",
        "its first frame, counted by check",
        {"odd.webp": animation("WEBP"), "odd.tiff": animation("TIFF")},
        make_image(),
        "several frames",
    ),
    accepted(
        14,
        "PNG named .jpg",
        "decoded by content, noted by check",
        {"odd.jpg": encode(make_image(), "PNG")},
        make_image(),
        "named as another format",
    ),
    refused(15, "EPS, PSD, SVG, PDF", "refused, no process is started", FOREIGN, UNKNOWN_FORMAT),
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
        {"1.png": encode(Image.new("RGB", (1, 1)), "PNG"), "3.png": encode(Image.new("RGB", (3, 40)), "PNG")},
        "smaller than 4 pixels",
    ),
    refused(
        17,
        "10 x 20,000",
        "longer than 100 times its width",
        {"odd.png": encode(Image.new("RGB", (10, 20000)), "PNG")},
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
    accepted(18, "comment of 10 MB", "decoded, none of it kept", {"odd.png": with_comment()}, make_image()),
    accepted(
        19, "JPEG with a ZIP appended", "the image alone", {"odd.jpg": JPEG + zip_file()}, Image.open(io.BytesIO(JPEG))
    ),
]
