"""The preprocessing line, timm's keys, and what resizing does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from taskgraft.data.transforms import (
    CROPS,
    FILTERS,
    NORMS,
    Preprocessing,
    find_bits,
    from_timm,
    parse_preprocessing,
    resize,
    to_timm,
)
from taskgraft.errors import TaskgraftError

FLOATS = st.floats(0.01, 1.0, exclude_max=False).map(lambda value: round(value, 8))
TRIPLES = st.tuples(FLOATS, FLOATS, FLOATS)


@st.composite
def preprocessings(draw: st.DrawFn) -> Preprocessing:
    crop = draw(st.sampled_from(CROPS))
    norm = draw(st.one_of(st.sampled_from(list(NORMS.values())), st.tuples(TRIPLES, TRIPLES)))
    return Preprocessing(
        draw(st.integers(8, 4096)),
        crop,
        draw(FLOATS) if crop == "center" else Preprocessing().crop_pct,
        draw(st.sampled_from(list(FILTERS))),
        *norm,
    )


@given(preprocessing=preprocessings(), start=preprocessings())
@settings(deadline=None, max_examples=200)
def test_the_line_says_everything(preprocessing: Preprocessing, start: Preprocessing) -> None:
    read = parse_preprocessing(preprocessing.to_text(), start)
    assert (
        read == preprocessing
        if preprocessing.crop == "center"
        else read._replace(crop_pct=preprocessing.crop_pct) == preprocessing
    )
    assert parse_preprocessing(read.to_text(), Preprocessing()).to_text() == preprocessing.to_text()


def test_the_line_of_an_unusual_normalization_is_exact() -> None:
    clip = Preprocessing(mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))
    assert parse_preprocessing(clip.to_text(), Preprocessing()) == clip


def test_what_a_line_leaves_out_stays() -> None:
    start = Preprocessing(96, "center", 0.9, "lanczos", *NORMS["half"])
    assert parse_preprocessing("", start) == start
    assert parse_preprocessing("squash", start) == start._replace(crop="squash")
    assert parse_preprocessing("center", start) == start
    assert parse_preprocessing("64 center:0.5 none", start) == Preprocessing(
        64, "center", 0.5, "lanczos", *NORMS["none"]
    )
    assert parse_preprocessing("std=1,2,3", start).std == (1.0, 2.0, 3.0)
    assert Preprocessing(96, "squash", 0.875, "bilinear").to_text() == "96 squash bilinear imagenet"


def test_the_bits_of_16_bit_files_are_a_word() -> None:
    twelve = parse_preprocessing("12bit", Preprocessing())
    assert twelve == Preprocessing(bits=12)
    assert twelve.to_text() == "224 center:0.875 bicubic imagenet 12bit"
    assert parse_preprocessing(twelve.to_text(), Preprocessing(96)) == twelve


GRAY = Preprocessing(28, "squash", 1.0, "bilinear", (0.5,), (0.25,))


def test_one_number_is_for_gray_images() -> None:
    assert GRAY.to_text() == "28 squash bilinear mean=0.5 std=0.25"
    assert parse_preprocessing(GRAY.to_text(), GRAY._replace(size=8)) == GRAY
    assert parse_preprocessing("imagenet", GRAY) == GRAY._replace(mean=(0.449,), std=(0.226,)), "as timm averages them"
    assert from_timm(to_timm(GRAY)) == GRAY
    assert to_timm(GRAY)["input_size"] == [1, 28, 28]
    assert from_timm({"mean": [0.5], "std": [0.25]}).with_channels(3).std == (0.25,) * 3, "as timm repeats them"


@pytest.mark.parametrize(
    ("line", "default", "message"),
    [
        ("mean=0.5 std=0.5", Preprocessing(), "mean has 1 number, but the network takes RGB images; give 3"),
        ("std=0.5", Preprocessing(), "std has 1 number"),
        ("mean=0,0,0 std=1,1,1", GRAY, "mean has 3 numbers, but the network takes gray images; give 1"),
    ],
)
def test_a_normalization_for_other_channels_is_refused(line: str, default: Preprocessing, message: str) -> None:
    with pytest.raises(TaskgraftError, match=message):
        parse_preprocessing(line, default)


@pytest.mark.parametrize(
    ("peak", "bits"), [(0, None), (255, 8), (1000, 10), (1024, 12), (4095, 12), (4096, 16), (65535, 16)]
)
def test_the_bits_follow_from_the_largest_value(peak: int, bits: int | None) -> None:
    assert find_bits(peak) == bits


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("96px", "'96px' is not understood; write a size such as 96"),
        ("7", "'7' is not understood"),
        ("5000", "'5000' is not understood"),
        ("-32", "'-32' is not understood"),
        ("cubic", "'cubic' is not understood"),
        ("center:0", "fraction '0' to crop is out of range; use one from 0.01 to 1"),
        ("center:1.1", "fraction '1.1' to crop is out of range; use one from 0.01 to 1"),
        ("center:1e-9", "fraction '1e-9' to crop is out of range; use one from 0.01 to 1"),
        ("squash:0.5", "'squash:0.5' is not understood"),
        ("9" * 5000, "is not understood"),
        ("std=1,1,1e300", "is not three numbers"),
        ("center:nan", "fraction 'nan' to crop is out of range"),
        ("17bit", "'17bit' is not understood"),
        ("center:x", "fraction 'x' to crop is out of range"),
        ("mean=1,2", "'1,2' is not three numbers"),
        ("mean=a,b,c", "'a,b,c' is not three numbers"),
        ("std=0,1,1", "std is not above 0"),
        ("std=-1,1,1", "std is not above 0"),
        ("std=nan,1,1", "is not three numbers|std is not above 0"),
        ("std=1,nan,1", "is not three numbers|std is not above 0"),
        ("mean=inf,0,0", "is not three numbers"),
        ("median=1,1,1", "'median=1,1,1' is not understood"),
    ],
)
def test_a_wrong_word_is_answered_with_the_right_ones(line: str, message: str) -> None:
    with pytest.raises(TaskgraftError, match=message):
        parse_preprocessing(line, Preprocessing())


@given(preprocessing=preprocessings())
@settings(deadline=None, max_examples=100)
def test_timms_keys_round_trip(preprocessing: Preprocessing) -> None:
    again = from_timm(to_timm(preprocessing))
    assert again.to_text() == preprocessing.to_text()
    assert (again.mean, again.std) == (preprocessing.mean, preprocessing.std)


def test_timms_defaults_stand_in() -> None:
    assert from_timm({}) == Preprocessing()
    config = {"input_size": (3, 96, 96), "interpolation": "random", "crop_mode": "odd", "crop_pct": None}
    assert from_timm(config) == Preprocessing(96)


@pytest.mark.parametrize(
    "line", ["32 squash bilinear half", "32 center:0.9 bicubic imagenet", "32 border nearest none"]
)
@pytest.mark.parametrize("shape", [(48, 80), (80, 48), (20, 20), (33, 41)])
def test_timms_own_transform_does_the_same(line: str, shape: tuple[int, int]) -> None:
    from timm.data import create_transform, resolve_data_config

    preprocessing = parse_preprocessing(line, Preprocessing())
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    config = resolve_data_config(pretrained_cfg=to_timm(preprocessing))
    theirs = create_transform(**{**config, "normalize": False})
    mine = np.asarray(resize(Image.fromarray(image), preprocessing)).astype(int)
    other = np.asarray(theirs(Image.fromarray(image)))  # pyright: ignore
    assert other.shape == (3, 32, 32)
    assert np.abs(mine.transpose(2, 0, 1) - other.astype(int)).max() <= 1


def bands(width: int, height: int) -> Image.Image:
    """Left third red, middle green, right blue."""
    pixels = np.zeros((height, width, 3), np.uint8)
    for band in range(3):
        pixels[:, band * width // 3 : (band + 1) * width // 3, band] = 255
    return Image.fromarray(pixels)


def test_squash_shows_everything() -> None:
    result = np.asarray(resize(bands(60, 30), Preprocessing(24, "squash", 0.875, "nearest")))
    assert [result[12, x].argmax() for x in (2, 12, 21)] == [0, 1, 2]
    assert result.shape == (24, 24, 3)
    assert (result.max(2) == 255).all()


def test_center_cuts_the_middle() -> None:
    result = np.asarray(resize(bands(90, 30), Preprocessing(24, "center", 1.0, "nearest")))
    assert result.shape == (24, 24, 3)
    assert (result.argmax(2) == 1).all()


def test_border_pads_with_black() -> None:
    result = np.asarray(resize(bands(60, 30), Preprocessing(24, "border", 0.875, "nearest")))
    assert result.shape == (24, 24, 3)
    assert not result[:6].any()
    assert not result[18:].any()
    assert (result[6:18].max(2) == 255).all()


@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize("shape", [(4, 400), (400, 4), (7, 5), (500, 499)])
def test_any_shape_becomes_the_size(crop: str, shape: tuple[int, int]) -> None:
    assert resize(Image.new("RGB", shape), Preprocessing(17, crop)).size == (17, 17)
