"""The pixel cache: a second run decodes nothing, and nothing stale or half-written is ever used."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image

from taskgraft.data import cache
from taskgraft.data.preprocess import Preprocess
from toys import NEW, folder_of

WANTED = Preprocess(16, "squash", 0.875, "bilinear")


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return sorted(folder_of(tmp_path / "data", NEW, 8, 1, size=20).rglob("*.png"))


def stored(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_second_load_decodes_nothing_and_gives_equal_pixels(tmp_path: Path, files: list[Path]) -> None:
    home = tmp_path / "cache"
    first, second = cache.load(files, WANTED, home), cache.load(files, WANTED, home)
    assert (first.decoded, second.decoded) == (8, 0)
    assert torch.equal(first.pixels, second.pixels)
    assert first[1:3] == second[1:3]
    memory = cache.load(files, WANTED, None)
    assert torch.equal(memory.pixels, first.pixels)
    assert memory.decoded == 8
    assert memory.pixels.float().std() > 10  # they are pictures, not zeros
    assert len(stored(home)) == 2  # a pair, and nothing left over


def test_progress_is_told_for_every_file(files: list[Path]) -> None:
    told: list[tuple[int, int]] = []
    cache.load(files, WANTED, None, lambda done, total: told.append((done, total)))
    assert told == [(row + 1, 8) for row in range(8)]


def test_changed_content_is_decoded_again(tmp_path: Path, files: list[Path]) -> None:
    first = cache.load(files, WANTED, tmp_path / "cache")
    stat = files[0].stat()
    files[0].write_bytes(files[1].read_bytes())
    os.utime(files[0], ns=(stat.st_atime_ns, stat.st_mtime_ns))  # the time of change is not what counts
    second = cache.load(files, WANTED, tmp_path / "cache")
    assert second.decoded == 8
    assert torch.equal(second.pixels[0], first.pixels[1])
    assert second.digests[0] == first.digests[1]


def test_another_order_or_size_or_filter_has_a_key_of_its_own(tmp_path: Path, files: list[Path]) -> None:
    home = tmp_path / "cache"
    first = cache.load(files, WANTED, home)
    assert torch.equal(cache.load(files[::-1], WANTED, home).pixels, first.pixels.flip(0))
    assert cache.load(files, WANTED._replace(size=24), home).pixels.shape == (8, 24, 24, 3)
    assert cache.load(files, WANTED._replace(interpolation="nearest"), home).decoded == 8
    assert len(stored(home)) == 8


def test_normalisation_does_not_change_the_pixels_and_shares_them(tmp_path: Path, files: list[Path]) -> None:
    cache.load(files, WANTED, tmp_path)
    assert cache.load(files, WANTED._replace(mean=(0.0,) * 3, std=(1.0,) * 3), tmp_path).decoded == 0


def test_the_name_of_a_file_does_not_matter(tmp_path: Path, files: list[Path]) -> None:
    cache.load(files, WANTED, tmp_path / "cache")
    moved = [path.rename(path.with_name(f"moved-{path.name}")) for path in files]
    assert cache.load(moved, WANTED, tmp_path / "cache").decoded == 0


@pytest.mark.parametrize("keep", [None, 1.0, 0.5, 0.0])
def test_a_half_written_cache_is_made_again(tmp_path: Path, files: list[Path], keep: float | None) -> None:
    home = tmp_path / "cache"
    first = cache.load(files, WANTED, home).pixels.clone()
    array, reasons = next(home.glob("*.npy")), next(home.glob("*.json"))
    if keep is None:
        array.unlink()
    elif keep == 1.0:
        reasons.unlink()
    else:
        os.truncate(array, int(keep * array.stat().st_size))
    again = cache.load(files, WANTED, home)
    assert again.decoded == 8
    assert torch.equal(again.pixels, first)
    assert cache.load(files, WANTED, home).decoded == 0


@pytest.mark.parametrize("text", ["[null", "[null]", "7", ""])
def test_damaged_reasons_are_made_again(tmp_path: Path, files: list[Path], text: str) -> None:
    cache.load(files, WANTED, tmp_path / "cache")
    next((tmp_path / "cache").glob("*.json")).write_text(text)
    assert cache.load(files, WANTED, tmp_path / "cache").decoded == 8


def test_reasons_survive(tmp_path: Path, files: list[Path]) -> None:
    files[2].write_bytes(b"no picture")
    files[5].write_bytes(b"")
    first, second = (cache.load(files, WANTED, tmp_path / "cache") for _ in range(2))
    assert second.decoded == 0
    assert first.reasons == second.reasons
    assert [row for row, reason in enumerate(second.reasons) if reason] == [2, 5]
    assert second.reasons[5] == "empty"
    assert not second.pixels[2].any()


def test_writing_into_loaded_pixels_leaves_the_cache_alone(tmp_path: Path, files: list[Path]) -> None:
    first = cache.load(files, WANTED, tmp_path / "cache")
    wanted = first.pixels.clone()
    first.pixels.zero_()
    assert torch.equal(cache.load(files, WANTED, tmp_path / "cache").pixels, wanted)


def test_pillows_warnings_do_not_leak(tmp_path: Path) -> None:
    Image.new("1", (10_000, 10_000)).save(tmp_path / "x.png")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = cache.load([tmp_path / "x.png"], WANTED, None)
    assert told == []
    assert found.reasons == ("10000x10000 is more than 89478485 pixels",)
