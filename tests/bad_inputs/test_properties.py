"""Whatever bytes or values come: a result, or a reason in words. Nothing else leaves decoders, readers and parsers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bad_inputs.images import JPEG, animation, encode, make_image, sixteen_bit
from taskgraft.bundle import Bundle, digests, read_bundle, write_bundle
from taskgraft.data import class_names, decode, near_duplicates, transforms
from taskgraft.data.layouts import list_images
from taskgraft.data.transforms import Preprocessing
from taskgraft.errors import TaskgraftError
from taskgraft.methods import notation
from toys import parent

PREPROCESSING = Preprocessing(16, "center", 0.875, "bilinear")
SEEDS = [
    JPEG,
    encode(make_image(), "PNG"),
    animation("GIF"),
    animation("WEBP"),
    sixteen_bit("TIFF"),
    encode(make_image(), "BMP"),
]
SETTINGS = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    write_bundle(
        folder, Bundle(parent(), PREPROCESSING, {}, "here", "0", "test_resnet", "fc"), method="train", parent={}
    )
    return folder


@SETTINGS
@given(st.sampled_from(SEEDS), st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=6)), max_size=5), st.floats(0, 1))
def test_image_is_decoded_or_refused(seed: bytes, changes: list[tuple[float, bytes]], share: float) -> None:
    data = bytearray(seed)
    for position, new in changes:
        at = int(position * len(data))
        data[at : at + len(new)] = new
    data = bytes(data[: len(data) - int(share * share * len(data))])
    result = decode.decode_bytes(data, PREPROCESSING, 10**6)
    assert (result.pixels is None) == bool(result.reason)
    if result.pixels is not None:
        assert (result.pixels.shape, result.pixels.dtype) == ((16, 16, 3), np.uint8)
        assert all(isinstance(remark, str) for remark in decode.find_remarks(data, ".jpg"))
        again = decode.decode_bytes(data, PREPROCESSING, 10**6).pixels
        assert again is not None
        np.testing.assert_array_equal(again, result.pixels)


@SETTINGS
@given(st.binary(max_size=300) | st.text(alphabet="path,label\n\r\"'\0;\tab.png./", max_size=120).map(str.encode))
@example(b"path,label\na.png,x\n\0,y\n")
@example(b"\xef\xbb\xbfpath,label\r\na.png,\r\n")
def test_table_is_read_or_refused(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "t.csv").write_bytes(text)
    try:
        result = list_images(tmp_path / "t.csv", "label")
    except TaskgraftError:
        return
    assert {entry.path for entry in result.entries} <= {"a.png", "./a.png", "t.csv", "./t.csv", ".", "./"}


@SETTINGS
@given(st.data())
def test_changed_config_is_opened_or_refused(bundle: Path, data: st.DataObject) -> None:
    file = bundle / "config.json"
    intact = file.read_text(encoding="utf-8")
    config: Any = json.loads(intact)
    inner = config
    while True:
        key = data.draw(st.sampled_from(sorted(inner)))
        if not isinstance(inner[key], dict) or not inner[key] or data.draw(st.booleans()):
            break
        inner = inner[key]
    if data.draw(st.booleans()):
        inner[key] = data.draw(JSON)
    else:
        del inner[key]
    try:
        file.write_text(json.dumps(config), encoding="utf-8", errors="surrogatepass")
        opened = read_bundle(bundle)
        assert opened.classifier.tasks[0].classes == ("round", "square", "thin")
    except TaskgraftError:
        pass  # refused
    finally:
        file.write_text(intact, encoding="utf-8")


@settings(SETTINGS, max_examples=60)
@given(st.sampled_from(["config.json", "model.safetensors"]), st.floats(0, 1), st.binary(min_size=1, max_size=8))
def test_changed_byte_is_noticed(bundle: Path, name: str, position: float, new: bytes) -> None:
    intact = (bundle / name).read_bytes()
    digests.write(bundle, {})
    at = min(int(position * len(intact)), len(intact) - 1)
    data = intact[:at] + new + intact[at + len(new) :]
    try:
        (bundle / name).write_bytes(data)
        assert (name in digests.compare(bundle).changed) == (data != intact)
        read_bundle(bundle)
    except TaskgraftError:
        pass  # refused
    finally:
        (bundle / name).write_bytes(intact)


@settings(SETTINGS, max_examples=400)
@given(st.text(max_size=60) | st.text(alphabet="ewcdistill+()=.,0123456789 '\"[]-", max_size=60))
@example("(" * 5000)
@example("ewc(strength=" + "9" * 5000 + ")")
@example("ewc(strength=1" + "+1" * 3000 + ")")
def test_notation_is_parsed_or_refused(text: str) -> None:
    try:
        plan = notation.parse(text)
    except TaskgraftError:
        return
    assert notation.parse(notation.show(plan)) == plan


@SETTINGS
@given(st.text(max_size=60) | st.text(alphabet="0123456789 .,:=abcdefghijklmnopqrstuvwxyz", max_size=60))
def test_preprocessing_is_parsed_or_refused(text: str) -> None:
    try:
        preprocessing = transforms.parse_preprocessing(text, PREPROCESSING)
    except TaskgraftError:
        return
    assert transforms.parse_preprocessing(preprocessing.to_text(), Preprocessing()) == preprocessing


@SETTINGS
@given(st.dictionaries(st.sampled_from(["input_size", "mean", "std", "crop_pct", "crop_mode", "interpolation"]), JSON))
def test_timm_config_is_read_or_refused(config: dict[str, Any]) -> None:
    try:
        preprocessing = transforms.from_timm(config)
    except TaskgraftError:
        return
    assert 8 <= preprocessing.size <= transforms.MAX_SIZE
    assert min(preprocessing.std) > 0


@SETTINGS
@given(st.lists(st.text(max_size=12), max_size=8))
def test_name_variants_have_one_normal_form(given_names: list[str]) -> None:
    for group in class_names.group_variants(given_names):
        assert len({class_names.normalize_name(name) for name in group}) == 1
    for near in class_names.find_matches(given_names, ["bus", "van"]):
        assert near.name not in ("bus", "van")
        assert near.suggestion in ("bus", "van")


@settings(SETTINGS, max_examples=50)
@given(st.integers(0, 40), st.integers(0, 2**32 - 1), st.integers(1, 3))
def test_near_duplicate_pairs_are_ordered(count: int, seed: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    result = near_duplicates.find_near_duplicates(
        (rng.integers(0, levels + 1, (count, 9, 9, 3)) * (255 // (levels + 1))).astype(np.uint8)
    )
    assert (result.pairs[:, 0] < result.pairs[:, 1]).all()
    flat = [row for group in near_duplicates.group_pairs(result.pairs) for row in group]
    assert len(flat) == len(set(flat))


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_truncated_animation_is_decoded_or_refused(kind: str) -> None:
    """A later frame may be damaged where the first is sound; found by the test of images above."""
    intact = animation(kind)
    read = 0
    for end in range(0, len(intact), 3):
        if decode.decode_bytes(intact[:end], PREPROCESSING).pixels is not None:
            assert len(decode.find_remarks(intact[:end], f".{kind.lower()}")) <= 1
            read += 1
    assert (read > 0) == (kind == "GIF")  # a WebP says how long it is
