"""Videos for tests, made of toy images: tracks one after another, each some frames of images of one class."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from taskgraft.types import Task
from toys import make_images

FRAME_RATE = 10
SIZE = 64


def make_frames(task: Task, tracks: Sequence[int], frames: int, seed: int = 11) -> list[NDArray[np.uint8]]:
    """`frames` images [SIDE, SIDE, 3] for each class number in `tracks`, in order."""
    images = make_images(400, task, seed)
    labels = images.labels[task.name].numpy()
    rng = np.random.default_rng(seed)
    result = []
    for k in tracks:
        for row in rng.choice(np.flatnonzero(labels == k), frames):
            result.append(images.pixels[row].numpy().repeat(SIZE // 32, axis=0).repeat(SIZE // 32, axis=1))
    return result


def write_video(path: Path, frames: Iterable[NDArray[np.uint8]], times: Sequence[float] | None = None) -> Path:
    """Write frames [H, W, 3] as a video, at RATE a second or at these times (seconds, rising)."""
    with av.open(path, "w", options={"movflags": "faststart"} if path.suffix == ".mp4" else {}) as container:
        stream = container.add_stream("mpeg4", rate=FRAME_RATE)
        stream.bit_rate = 8_000_000
        for number, pixels in enumerate(frames):
            if number == 0:
                stream.height, stream.width = pixels.shape[:2]
                stream.pix_fmt = "yuv420p"
                stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            time = number / FRAME_RATE if times is None else times[number]
            frame.pts, frame.time_base = round(1000 * time), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def truncate(path: Path, share: float, to: Path) -> Path:
    """The first `share` of a file."""
    data = path.read_bytes()
    to.write_bytes(data[: int(share * len(data))])
    return to


def rotate(path: Path, to: Path) -> Path:
    """The same MP4, marked to be shown turned by a quarter: its track's matrix says so, no frame changes."""
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4 + 40  # behind version, times, identity, duration, layer, volume
    one, none = (0x10000).to_bytes(4, "big"), bytes(4)
    minus = (2**32 - 0x10000).to_bytes(4, "big")
    data[start : start + 36] = none + one + none + minus + none + none + none + none + (0x40000000).to_bytes(4, "big")
    to.write_bytes(data)
    return to
