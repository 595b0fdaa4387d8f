"""Frames by time stamp: which, how they look, and what becomes of damaged files."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from taskgraft.data.streaming import MediaFile, StreamedImage, read_frames
from taskgraft.data.transforms import Preprocessing
from taskgraft.errors import TaskgraftError
from videos import FRAME_RATE, rotate, truncate, write_video

WANTED = Preprocessing(16, "squash", 1.0, "bilinear")


def frames(path: Path, preprocessing: Preprocessing, every: float) -> Iterator[StreamedImage]:
    return read_frames(MediaFile(path, path.name, True), preprocessing, every)


def gray(levels: list[int]) -> list[np.ndarray]:
    return [np.full((48, 64, 3), level, np.uint8) for level in levels]


def test_frames_are_taken_by_time(tmp_path: Path) -> None:
    levels = [10 * number for number in range(20)]
    path = write_video(tmp_path / "a.mp4", gray(levels))
    result = list(frames(path, WANTED, 0.5))
    assert [frame.seconds for frame in result] == pytest.approx([0.0, 0.5, 1.0, 1.5])
    assert [frame.reason for frame in result] == [None] * 4
    seen = [float(frame.pixels.mean()) for frame in result if frame.pixels is not None]
    assert seen == pytest.approx([0, 50, 100, 150], abs=4)
    assert all(frame.pixels.shape == (16, 16, 3) for frame in result if frame.pixels is not None)


def test_a_variable_rate_goes_by_time_stamps_not_by_counting(tmp_path: Path) -> None:
    times = [0.0, 0.1, 0.2, 0.3, 2.0, 2.1, 4.75, 4.8]
    path = write_video(tmp_path / "a.mkv", gray([10 * number for number in range(8)]), times)
    assert [frame.seconds for frame in frames(path, WANTED, 1.0)] == pytest.approx([0.0, 2.0, 4.75], abs=2e-3)


def test_a_turned_video_is_upright(tmp_path: Path) -> None:
    split = np.zeros((48, 64, 3), np.uint8)
    split[:24] = 255  # white above, black below
    upright = write_video(tmp_path / "a.mp4", [split] * 3)
    (plain, *_), (other, *_) = (list(frames(p, WANTED, 1.0)) for p in (upright, rotate(upright, tmp_path / "b.mp4")))
    assert plain.pixels is not None
    assert other.pixels is not None
    assert plain.pixels[:6].mean() > 200 > 60 > plain.pixels[10:].mean()
    assert other.pixels[:, 10:].mean() > 200 > 60 > other.pixels[:, :6].mean()  # turned clockwise


def test_a_video_cut_off_keeps_what_came_before(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    whole = write_video(tmp_path / "a.mp4", [rng.integers(0, 256, (48, 64, 3), dtype=np.uint8) for _ in range(60)])
    *kept, last = frames(truncate(whole, 0.5, tmp_path / "b.mp4"), WANTED, 0.5)
    assert 3 <= len(kept) <= 9
    assert last.pixels is None
    assert "cut off at" in str(last.reason)
    assert "of 6.0 s; earlier frames are used" in str(last.reason)
    for one, two in zip(kept, frames(whole, WANTED, 0.5), strict=False):
        assert one.seconds == two.seconds
    first = next(frames(whole, WANTED, 0.5))
    assert np.array_equal(np.asarray(kept[0].pixels), np.asarray(first.pixels))


def test_a_damaged_middle_is_passed_over(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    whole = write_video(tmp_path / "a.mkv", [rng.integers(0, 256, (48, 64, 3), dtype=np.uint8) for _ in range(60)])
    data = bytearray(whole.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 40_000] = rng.integers(0, 256, 40_000, dtype=np.uint8).tobytes()
    whole.write_bytes(data)
    result = list(frames(whole, WANTED, 0.5))
    kept = [frame.seconds for frame in result if frame.pixels is not None]
    assert len(kept) >= 5
    assert kept[0] == 0.0
    assert all(frame.reason is None for frame in result[:-1])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"this is text, whatever it is called" * 50, "cannot be read as a video"),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n/etc/passwd\n#EXT-X-ENDLIST\n", "cannot be read as a video"),
    ],
)
def test_what_is_no_video_has_a_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    (only,) = frames(path, WANTED, 0.5)
    assert only.pixels is None
    assert reason in str(only.reason)


def test_sound_alone_has_no_picture(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(path, "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    (only,) = frames(path, WANTED, 0.5)
    assert only.reason == "there is no video in it"


def test_one_frame_is_enough(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", gray([120]))
    (only,) = frames(path, WANTED, 0.5)
    assert (only.seconds, only.reason) == (0.0, None)
    assert 1 / FRAME_RATE < 0.5


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "a.mp4")
    (only,) = frames(tmp_path / "a.mp4", WANTED, 0.5)
    assert only.reason == "not a regular file"


def test_without_pyav_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(TaskgraftError, match=r"taskgraft\[video\]") as error:
        next(frames(tmp_path / "a.mp4", WANTED, 0.5))
    assert error.value.exit_code == 3
