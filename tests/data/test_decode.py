"""Every rule of decoding on a real file: what comes out right, and what is refused with a reason."""

from __future__ import annotations

import io
import os
import struct
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from taskgraft.data import decode
from taskgraft.data.transforms import Preprocessing

AS_IS = Preprocessing(16, "squash", 0.875, "nearest")
Array = NDArray[np.uint8]


def noise(seed: int = 0, size: int = 16) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)  # pyright: ignore[reportArgumentType]
    return path


def pixels(path: Path, expected: Preprocessing = AS_IS) -> Array:
    result = decode.decode_file(path, expected)
    assert result.reason is None
    assert result.pixels is not None
    assert (result.pixels.shape, result.pixels.dtype) == ((expected.size, expected.size, 3), np.uint8)
    return result.pixels


def reason(path: Path) -> str:
    result = decode.decode_file(path, AS_IS)
    assert result.pixels is None
    assert result.reason is not None
    assert decode.decode_file(path, None).reason == result.reason  # only checking gives the same answer
    return result.reason


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "TIFF", "WEBP"])
def test_lossless_formats_give_the_pixels(tmp_path: Path, kind: str) -> None:
    image = Image.fromarray(noise())
    path = saved(tmp_path / "x", image, format=kind, **({"lossless": True} if kind == "WEBP" else {}))
    np.testing.assert_array_equal(pixels(path), noise())


def test_the_content_decides_and_not_the_name(tmp_path: Path) -> None:
    np.testing.assert_array_equal(pixels(saved(tmp_path / "x.jpg", Image.fromarray(noise()), format="PNG")), noise())


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_jpeg_is_refused(tmp_path: Path, share: float) -> None:
    whole = io.BytesIO()
    Image.fromarray(noise(size=64)).save(whole, "JPEG", quality=95)
    (tmp_path / "x.jpg").write_bytes(whole.getvalue()[: int(share * len(whole.getvalue()))])
    assert reason(tmp_path / "x.jpg").startswith(("damaged: ", "not an image"))


def test_a_truncated_png_is_refused(tmp_path: Path) -> None:
    whole = saved(tmp_path / "x.png", Image.fromarray(noise(size=64))).read_bytes()
    (tmp_path / "x.png").write_bytes(whole[: len(whole) // 2])
    assert reason(tmp_path / "x.png").startswith("damaged: ")


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("not an image, although it is called one")
    (tmp_path / "folder.jpg").mkdir()
    assert reason(tmp_path / "empty.jpg") == "empty"
    assert reason(tmp_path / "text.jpg").startswith("not an image in a known format (JPEG, PNG")
    assert reason(tmp_path / "folder.jpg") == "not a regular file"
    assert reason(tmp_path / "gone.jpg") == "cannot be read: No such file or directory"


def test_a_pipe_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.jpg")
    assert reason(tmp_path / "x.jpg") == "not a regular file"


def test_a_broken_link_and_a_circle_of_links_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to("/gone/a.png")
    (tmp_path / "b.png").symlink_to("b.png")
    assert reason(tmp_path / "a.png") == "a broken link: /gone/a.png does not exist"
    assert reason(tmp_path / "b.png") == "a link that leads back to itself"


def test_postscript_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.eps", Image.fromarray(noise()), format="EPS")
    assert reason(path).startswith("not an image in a known format")


def test_a_float_picture_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.tiff", Image.fromarray(noise()[..., 0].astype(np.float32)), format="TIFF")
    assert "float image" in decode.decode_file(path, AS_IS).reason  # pyright: ignore[reportOperatorIssue]
    assert "float image" in reason(path)


def test_cmyk_is_converted(tmp_path: Path) -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # magenta and yellow ink: red
    red = pixels(saved(tmp_path / "x.jpg", image, quality=100)).reshape(-1, 3).mean(0)
    assert red[0] > 240
    assert red[1:].max() < 15


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path: Path) -> None:
    gradient = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    image = Image.fromarray(gradient)
    assert image.mode == "I;16"
    result = pixels(saved(tmp_path / "x.png", image))
    np.testing.assert_array_equal(result[..., 0], np.arange(256).reshape(16, 16))
    assert (result == result[..., :1]).all()


def test_a_cameras_12_bits_become_8(tmp_path: Path) -> None:
    gradient = np.linspace(0, 4095, 256).round().astype(np.uint16).reshape(16, 16)
    path = saved(tmp_path / "x.png", Image.fromarray(gradient))
    np.testing.assert_array_equal(pixels(path, AS_IS._replace(bits=12))[..., 0], np.arange(256).reshape(16, 16))
    assert decode.decode_file(path, AS_IS).peak == 4095
    assert (
        decode.decode_file(path, AS_IS._replace(bits=10)).reason
        == "its value 4095 is beyond the preprocessing's 10 bits"
    )


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    image = np.zeros((16, 16, 4), np.uint8)
    image[:8] = (10, 20, 30, 255)
    image[8:12] = (0, 0, 0, 128)
    result = pixels(saved(tmp_path / "x.png", Image.fromarray(image)))
    assert (result[:8] == (10, 20, 30)).all()
    assert (abs(result[8:12].astype(int) - 127) <= 1).all()
    assert (result[12:] == 255).all()


@pytest.mark.parametrize("transparency", [1, b"\xff\x00\xff"])
def test_a_palette_with_transparency(tmp_path: Path, transparency: int | bytes) -> None:
    image = Image.fromarray(np.repeat(np.array([0, 1, 2, 2], np.uint8), 64).reshape(16, 16)).copy()
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255] + [0] * 759)
    path = saved(tmp_path / "x.png", image, transparency=transparency)
    result = pixels(path)[::4, 0]
    assert result.tolist() == [[255, 0, 0], [255, 255, 255], [0, 0, 255], [0, 0, 255]]


def test_one_bit_and_gray(tmp_path: Path) -> None:
    chequer = (np.indices((16, 16)).sum(0) % 2 * 255).astype(np.uint8)
    expected = np.repeat(chequer[..., None], 3, axis=2)
    np.testing.assert_array_equal(pixels(saved(tmp_path / "1.png", Image.fromarray(chequer).convert("1"))), expected)
    np.testing.assert_array_equal(pixels(saved(tmp_path / "l.png", Image.fromarray(chequer))), expected)
    two = np.stack([chequer, np.full_like(chequer, 255)], axis=2)
    np.testing.assert_array_equal(pixels(saved(tmp_path / "la.png", Image.fromarray(two))), expected)


# how a camera that was held so stores an upright image, by EXIF orientation
STORED: dict[int, Callable[[Array], Array]] = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x, 1),
    7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
    8: lambda x: np.rot90(x, -1),
}


@pytest.mark.parametrize("orientation", STORED)
def test_all_orientations_give_the_same_picture(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.ascontiguousarray(STORED[orientation](noise())))
    np.testing.assert_array_equal(pixels(saved(tmp_path / "x.png", image, exif=exif)), noise())


def test_the_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "lime", "blue")]
    path = saved(tmp_path / "x.gif", frames[0], save_all=True, append_images=frames[1:])
    with Image.open(path) as image:
        assert getattr(image, "n_frames", 1) == 3
    assert (pixels(path) == (255, 0, 0)).all()


@pytest.mark.parametrize(
    ("width", "height", "message"),
    [(20000, 10, "longer than 100 times"), (1, 20000, "smaller than 4 pixels"), (3, 3, "smaller than 4 pixels")],
)
def test_absurd_shapes_are_refused(tmp_path: Path, width: int, height: int, message: str) -> None:
    path = saved(tmp_path / "x.png", Image.new("RGB", (width, height)))
    assert message in reason(path)


@pytest.mark.parametrize("side", [10_000, 60_000])
def test_a_bomb_is_refused_by_its_header(tmp_path: Path, side: int) -> None:
    (tmp_path / "x.png").write_bytes(png_header(side, side))
    begin = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as the cache and `check` do
        assert "pixels" in reason(tmp_path / "x.png")
    assert time.perf_counter() - begin < 0.5


def photograph(side: int, orientation: int = 1) -> bytes:
    """A large JPEG with detail at every scale, a third of it flat."""
    rng = np.random.default_rng(0)
    image = sum(
        (
            np.kron(rng.normal(0, 30, (side // cell, side // cell, 3)), np.ones((cell, cell, 1)))
            for cell in (4, 20, 100)
        ),
        np.full((side, side, 3), 128.0),
    )
    image[: side // 3] = (200, 60, 30)
    exif, result = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(result, "JPEG", quality=92, exif=exif)
    return result.getvalue()


@pytest.mark.parametrize("crop", ["squash", "center", "border"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_jpeg_is_decoded_at_a_reduced_scale_and_looks_the_same(
    monkeypatch: pytest.MonkeyPatch, crop: str, orientation: int
) -> None:
    expected, blob = Preprocessing(48, crop, 0.875, "bilinear"), photograph(1000, orientation)
    reduced = decode.decode_bytes(blob, expected)
    monkeypatch.setattr(decode, "OVERSAMPLING", 10**6)
    full = decode.decode_bytes(blob, expected)
    assert reduced.pixels is not None
    assert full.pixels is not None
    assert (reduced.width, reduced.height) == (1000, 1000)
    off = np.abs(reduced.pixels.astype(int) - full.pixels)
    assert 0 < off.mean() < 0.7
    assert np.percentile(off, 99) <= 4


def test_a_jpeg_that_is_not_far_larger_than_wanted_is_decoded_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, blob = Preprocessing(48, "squash", 0.875, "bilinear"), photograph(300)  # half of it is less than 4 x 48
    result = decode.decode_bytes(blob, expected).pixels
    monkeypatch.setattr(decode, "OVERSAMPLING", 10**6)
    np.testing.assert_array_equal(result, decode.decode_bytes(blob, expected).pixels)


def test_a_truncated_large_jpeg_is_refused_at_any_scale(tmp_path: Path) -> None:
    whole = photograph(1000)
    (tmp_path / "x.jpg").write_bytes(whole[: len(whole) // 2])
    assert reason(tmp_path / "x.jpg").startswith("damaged: ")


def test_what_would_be_blown_up_is_refused() -> None:
    """A model's own preprocessing may ask for more pixels than any image has."""
    file = io.BytesIO()
    Image.new("RGB", (4, 400)).save(file, "PNG")
    result = decode.decode_bytes(file.getvalue(), Preprocessing(4096, "center", 1.0, "bilinear"))
    assert result.pixels is None
    assert result.reason == "4x400 would be resized to 4096x409600: more than 89478485 pixels"
