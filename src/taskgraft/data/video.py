"""A video -> its frames by time stamp, as pixels by the same rules as images. Needs the extra `video` (PyAV)."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from taskgraft.data.decode import MAX_PIXELS, MIN_SIDE, to_rgb
from taskgraft.data.transforms import Preprocessing, resize
from taskgraft.errors import require

SUFFIXES = {
    ".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".webm",
    ".wmv",
}  # fmt: skip
# What FFmpeg may open: containers that hold their own frames. A playlist in disguise would make it read other files.
CONTAINERS = "mov,matroska,avi,mpegts,mpeg,flv,asf,ogg"
SLACK = 0.05  # of the length that a file states, which may be missing before it counts as cut off


class Frame(NamedTuple):
    """A frame [H, W, 3] uint8 at `seconds` from the start of the video; or, last, why there are no more."""

    seconds: float
    pixels: NDArray[np.uint8] | None
    reason: str | None = None


def frames(path: Path, preprocessing: Preprocessing, every: float) -> Iterator[Frame]:
    """The first frame, and then one at or after every `every` seconds of time stamp, upright and at size.

    Frames are read one after another: memory does not grow with the video. What is damaged is passed over; a last Frame
    without pixels says what was wrong, or that nothing could be read. Raises TaskgraftError without PyAV.
    """
    require("video", "av", what="a video")
    import av

    try:
        info = os.stat(path)
        if not stat.S_ISREG(info.st_mode) or not info.st_size:
            yield Frame(0.0, None, "empty" if stat.S_ISREG(info.st_mode) else "not a regular file")
            return
        # A file object, not a name: FFmpeg takes names such as "concat:…" for protocols.
        with path.open("rb") as file, av.open(file, options={"format_whitelist": CONTAINERS}) as container:
            yield from _frames(container, preprocessing, every)
    except (av.FFmpegError, OSError) as error:
        yield Frame(0.0, None, f"cannot be read as a video: {_plain(error)}")


def _frames(container: Any, preprocessing: Preprocessing, every: float) -> Iterator[Frame]:
    import av

    if not container.streams.video:
        yield Frame(0.0, None, "there is no video in it")
        return
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > MAX_PIXELS or min(width, height) < MIN_SIDE:
        yield Frame(0.0, None, f"its frames of {width}x{height} are too large or too small")
        return
    frame_rate = float(stream.average_rate or stream.guessed_rate or 25)
    start, due, last, count, damaged = 0.0, 0.0, 0.0, 0, 0
    packets, over = container.demux(stream), False
    while not over:
        try:
            packet = next(packets)
            found = packet.decode()
        except StopIteration:
            break
        except av.InvalidDataError:  # this packet; the next may be sound
            damaged, found = damaged + 1, []
        except av.FFmpegError:  # nothing can follow
            damaged, found, over = damaged + 1, [], True
        for frame in found:
            time = count / frame_rate if frame.time is None else float(frame.time)
            start = time if count == 0 else start
            last, count = time - start, count + 1
            if last >= due - 1e-6:
                due = (int(last / every + 1e-6) + 1) * every
                yield Frame(last, _pixels(frame, preprocessing))
    reason = _wanting(count, damaged, last + 1 / frame_rate, _length(stream, container))
    if reason:
        yield Frame(last, None, reason)


def _pixels(frame: Any, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    image = to_rgb(frame.to_image())
    if frame.rotation % 360:  # degrees by which a player turns it counter-clockwise
        image = image.rotate(frame.rotation, expand=True)
    return np.asarray(resize(image, preprocessing))


def _length(stream: Any, container: Any) -> float:
    """Seconds that the file says it has; 0 where it does not."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    return float((container.duration or 0) / 1_000_000)


def _wanting(count: int, damaged: int, end: float, length: float) -> str | None:
    parts = []
    if damaged:
        parts.append(f"{damaged} damaged part{'s' * (damaged != 1)} passed over")
    if end < length - max(SLACK * length, 0.2):
        parts.append(f"cut off at {end:.1f} s of {length:.1f} s")
    if not count:
        return "no frame can be read" + (f" ({', '.join(parts)})" if parts else "")
    return ", ".join(parts) + "; what came before is kept" if parts else None


def _plain(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error).splitlines()[0][:120]
