"""The pixel cache: a second run decodes nothing, and nothing stale or half-written is ever used."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image

from taskgraft.data import file_index, pixel_cache
from taskgraft.data.transforms import Preprocessing
from taskgraft.errors import TaskgraftError
from toys import NEW, write_folder

WANTED = Preprocessing(16, "squash", 0.875, "bilinear")
ROW = 16 * 16 * 3


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "data", NEW, 8, 1, size=20)


def paths(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))


def load(
    root: Path, home: Path, names: Sequence[str] = (), preprocessing: Preprocessing = WANTED
) -> pixel_cache.LoadedPixels:
    names = names or paths(root)
    return pixel_cache.load_pixels(root, names, preprocessing, cache=home, name="it")


def files(home: Path, pattern: str) -> list[Path]:
    return sorted(home.glob(f"pixels/*/{pattern}"))


def test_a_second_load_decodes_nothing_and_gives_equal_pixels(tmp_path: Path, root: Path) -> None:
    home = tmp_path / "cache"
    first, second = load(root, home), load(root, home)
    assert (first.decoded, second.decoded) == (8, 0)
    assert torch.equal(first.pixels, second.pixels)
    assert (first.digests == second.digests).all()
    memory = pixel_cache.load_pixels(root, paths(root), WANTED)
    assert torch.equal(memory.pixels, first.pixels)
    assert (memory.decoded, memory.key) == (8, None)
    assert memory.pixels.float().std() > 10  # they are images, not zeros
    assert [path.name for path in files(home, "*")] == [f"{first.key}.npy", f"{first.key}.u8"]  # nothing left over


def test_digests_are_sha256_of_the_bytes(root: Path) -> None:
    result = pixel_cache.load_pixels(root, paths(root), WANTED)
    expected = [hashlib.sha256((root / name).read_bytes()).digest() for name in paths(root)]
    assert [row.tobytes() for row in result.digests] == expected


def test_progress_is_told_for_every_file(root: Path) -> None:
    recorded: list[tuple[int, int]] = []
    pixel_cache.load_pixels(root, paths(root), WANTED, progress=lambda done, total: recorded.append((done, total)))
    assert recorded == [(row + 1, 8) for row in range(8)]


def test_only_what_is_new_is_decoded(tmp_path: Path, root: Path) -> None:
    first = load(root, tmp_path / "cache")
    names = paths(root)
    stat = (root / names[0]).stat()
    (root / names[0]).write_bytes((root / names[1]).read_bytes())
    os.utime(root / names[0], ns=(stat.st_atime_ns, stat.st_mtime_ns))  # the time of change is not what counts
    Image.new("RGB", (20, 20), "red").save(root / names[2])
    second = load(root, tmp_path / "cache")
    assert second.decoded == 1
    assert torch.equal(second.pixels[0], first.pixels[1])
    assert (second.pixels[2, ..., 0] == 255).all()
    assert torch.equal(second.pixels[3:], first.pixels[3:])
    assert (second.digests[0] == first.digests[1]).all()


def test_another_size_or_filter_is_decoded_and_another_order_is_copied(tmp_path: Path, root: Path) -> None:
    home = tmp_path / "cache"
    first = load(root, home)
    turned = load(root, home, paths(root)[::-1])
    assert turned.decoded == 0
    assert torch.equal(turned.pixels, first.pixels.flip(0))
    assert load(root, home, preprocessing=WANTED._replace(size=24)).pixels.shape == (8, 24, 24, 3)
    assert load(root, home, preprocessing=WANTED._replace(interpolation="nearest")).decoded == 8
    assert len(files(home, "*.u8")) == 4


def test_normalization_does_not_change_the_pixels_and_shares_them(tmp_path: Path, root: Path) -> None:
    load(root, tmp_path / "cache")
    assert load(root, tmp_path / "cache", preprocessing=WANTED._replace(mean=(0.0,) * 3, std=(1.0,) * 3)).decoded == 0


def test_the_name_of_a_file_does_not_matter(tmp_path: Path, root: Path) -> None:
    load(root, tmp_path / "cache")
    for name in paths(root):
        (root / name).rename((root / name).with_name(f"moved-{Path(name).name}"))
    assert load(root, tmp_path / "cache").decoded == 0


@pytest.mark.parametrize("keep", [None, 1.0, 0.5, 0.0])
def test_a_half_written_file_is_made_again(tmp_path: Path, root: Path, keep: float | None) -> None:
    home = tmp_path / "cache"
    first = load(root, home).pixels.clone()
    (pixels,), (digests,) = files(home, "*.u8"), files(home, "*.npy")
    if keep is None:
        pixels.unlink()
    elif keep == 1.0:
        digests.unlink()
    else:
        os.truncate(pixels, int(keep * pixels.stat().st_size))
    again = load(root, home)
    assert again.decoded == 8
    assert torch.equal(again.pixels, first)
    assert load(root, home).decoded == 0


@pytest.mark.parametrize("text", [b"", b"\x93NUMPY", b"nothing of the kind"])
def test_damaged_digests_are_made_again(tmp_path: Path, root: Path, text: bytes) -> None:
    load(root, tmp_path / "cache")
    files(tmp_path / "cache", "*.npy")[0].write_bytes(text)
    assert load(root, tmp_path / "cache").decoded == 8


def test_what_cannot_be_used_has_a_reason_and_no_row(tmp_path: Path, root: Path) -> None:
    names = paths(root)
    (root / names[2]).write_bytes(b"no image")
    (root / names[5]).write_bytes(b"")
    full = pixel_cache.load_pixels(root, [name for row, name in enumerate(names) if row not in (2, 5)], WANTED)
    for result in (load(root, tmp_path / "cache"), pixel_cache.load_pixels(root, names, WANTED)):
        assert sorted(result.reasons) == [2, 5]
        assert result.reasons[2].startswith("not an image")
        assert result.reasons[5] == "empty"
        assert torch.equal(result.pixels, full.pixels)


class Stopped(Exception):
    """Somebody pressed a key."""


def stopped_at(row: int) -> pixel_cache.Progress:
    def tell(done: int, total: int) -> None:
        if done == row:
            raise Stopped

    return tell


@pytest.mark.parametrize("changed", [False, True])
def test_whoever_was_stopped_goes_on_after_the_last_whole_shard(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch, changed: bool
) -> None:
    monkeypatch.setattr(pixel_cache, "SHARD", 3 * ROW)
    monkeypatch.setattr(file_index, "SETTLED", 0.0)  # the files are only just written
    home, names = tmp_path / "cache", paths(root)
    (root / names[1]).write_bytes(b"no image")
    with pytest.raises(Stopped):
        pixel_cache.load_pixels(root, names, WANTED, cache=home, name="it", progress=stopped_at(8))
    for name in ("pixels", "digests"):  # half of the next shard
        with files(home, f"it.begun/{name}")[0].open("ab") as file:
            file.write(b"half")
    if changed:
        Image.new("RGB", (20, 20), "red").save(root / names[0])
    result = load(root, home, names)
    assert result.decoded == (4 if changed else 2)  # of two whole shards, five images are there
    assert torch.equal(result.pixels, pixel_cache.load_pixels(root, names, WANTED).pixels)
    assert list(result.reasons) == [1]
    assert len(files(home, "*")) == 2


def test_an_unfinished_file_that_is_damaged_is_begun_again(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pixel_cache, "SHARD", 3 * ROW)
    monkeypatch.setattr(file_index, "SETTLED", 0.0)
    home, names = tmp_path / "cache", paths(root)
    with pytest.raises(Stopped):
        pixel_cache.load_pixels(root, names, WANTED, cache=home, name="it", progress=stopped_at(8))
    os.truncate(files(home, "it.begun/pixels")[0], 5 * ROW)
    result = load(root, home, names)
    assert result.decoded == 8
    assert torch.equal(result.pixels, pixel_cache.load_pixels(root, names, WANTED).pixels)


def test_writing_into_loaded_pixels_leaves_the_cache_alone(tmp_path: Path, root: Path) -> None:
    first = load(root, tmp_path / "cache")
    expected = first.pixels.clone()
    first.pixels.zero_()
    assert torch.equal(load(root, tmp_path / "cache").pixels, expected)


def test_a_cache_that_cannot_be_written_is_a_line(tmp_path: Path, root: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(TaskgraftError, match=r"cannot be written: .*choose another --cache FOLDER"):
        load(root, tmp_path / "cache")


def test_pillows_warnings_do_not_leak(tmp_path: Path) -> None:
    Image.new("1", (10_000, 10_000)).save(tmp_path / "x.png")
    with warnings.catch_warnings(record=True) as recorded:
        warnings.simplefilter("always")
        result = pixel_cache.load_pixels(tmp_path, ["x.png"], WANTED)
    assert recorded == []
    assert result.reasons == {0: "10000x10000 is more than 89478485 pixels"}
