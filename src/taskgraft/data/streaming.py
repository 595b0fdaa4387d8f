"""Images and video frames in order, decoded ahead of whoever reads them. Videos need the extra `video` (PyAV)."""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from taskgraft.data import decode, tar_shards
from taskgraft.data.layouts import Skipped, find_side_files, list_folder
from taskgraft.data.transforms import Preprocessing
from taskgraft.errors import DataError, require
from taskgraft.results.files import escape_surrogates

PREFETCH = 4  # images that are being decoded or wait, for each thread
VIDEO_SUFFIXES = {
    ".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".webm",
    ".wmv",
}  # fmt: skip
# containers that hold their own frames; a playlist in disguise would make FFmpeg read other files
CONTAINERS = "mov,matroska,avi,mpegts,mpeg,flv,asf,ogg"
TOLERANCE = 0.05  # fraction of the declared length that may be missing before a video counts as truncated


class MediaFile(NamedTuple):
    """An image or video to read; `name` identifies it in results."""

    path: Path
    name: str
    is_video: bool


class StreamedImage(NamedTuple):
    """An image or frame [H, W, C] uint8, or the reason why there is none; `seconds` into the video for its frames."""

    name: str
    pixels: NDArray[np.uint8] | None
    reason: str | None
    seconds: float | None = None


class MediaListing(NamedTuple):
    """The files at some paths, and what was left out: (path, reason)."""

    items: tuple[MediaFile, ...]
    skipped: tuple[tuple[str, str], ...]


def find_media(paths: Iterable[str | Path]) -> MediaListing:
    """Find images and videos: files in the given order, folders sorted and recursively, tar archives by member.

    A path that is given twice counts once. Hidden files and side files are skipped; links are followed.

    Raises:
        DataError: a path does not exist, or an archive is damaged.
    """
    items: dict[str, MediaFile] = {}
    skipped: Skipped = []
    for path in map(Path, paths):
        try:
            is_folder = path.is_dir()
            exists = is_folder or os.path.lexists(path)
        except (OSError, ValueError) as error:
            raise DataError(f"{escape_surrogates(str(path))!r} is not a valid path: {error}") from error
        if not exists:
            raise DataError(f"{escape_surrogates(str(path))} does not exist; give images, videos or folders of them")
        for file in _expand_archives(_walk(path, skipped) if is_folder else (path,), skipped):
            is_video = file.suffix.lower() in VIDEO_SUFFIXES
            items.setdefault(str(file), MediaFile(file, escape_surrogates(str(file)), is_video))
    return MediaListing(tuple(items.values()), tuple(skipped))


def _walk(root: Path, skipped: Skipped) -> Iterator[Path]:
    """All files below a folder, sorted; a linked folder is entered once, so that no circle of links is walked."""
    stack, entered = [root], {os.path.realpath(root)}
    while stack:
        skipped_here: Skipped = []
        folders = []
        paths = list(list_folder(stack.pop(), root, skipped_here))
        side_files = find_side_files(path.name for path in paths)
        for path in paths:
            if not path.is_dir():
                if path.name not in side_files or path.suffix.lower() in {*VIDEO_SUFFIXES, tar_shards.SUFFIX}:
                    yield path
            elif path.is_symlink() and _is_entered(os.path.realpath(path), entered):
                skipped_here.append((path.relative_to(root).as_posix(), "a link to a folder that is read anyway"))
            else:
                entered.add(os.path.realpath(path))
                folders.append(path)
        skipped += [(escape_surrogates(str(root / path)), reason) for path, reason in skipped_here]
        stack += reversed(folders)


def _is_entered(folder: str, entered: set[str]) -> bool:
    """Whether a folder was entered, or contains one that was: a link up."""
    return any(other == folder or other.startswith(folder.rstrip(os.sep) + os.sep) for other in entered)


def _expand_archives(files: Iterable[Path], skipped: Skipped) -> Iterator[Path]:
    for file in files:
        if file.suffix.lower() != tar_shards.SUFFIX or not file.is_file():
            yield file
            continue
        skipped += [
            (escape_surrogates(f"{file}/{name}"), reason) for name, reason in tar_shards.read_index(file).skipped
        ]
        yield from (file / name for name in tar_shards.list_members(file))


def stream_images(items: Sequence[MediaFile], preprocessing: Preprocessing, every: float) -> Iterator[StreamedImage]:
    """Decode images in order, and from each video a frame every `every` seconds, named "file@12.500s".

    Memory does not grow with the number of images or the length of a video.

    Raises:
        MissingDependency: there is a video, but no PyAV.
    """
    queue: deque[tuple[MediaFile, Future[decode.Decoded] | None]] = deque()
    remaining = iter(items)
    with decode.thread_pool() as pool:
        try:
            while True:
                while len(queue) < PREFETCH * decode.count_workers() and (item := next(remaining, None)):
                    future = None if item.is_video else pool.submit(decode.decode_file, item.path, preprocessing)
                    queue.append((item, future))
                if not queue:
                    return
                item, future = queue.popleft()
                if future is None:
                    yield from read_frames(item, preprocessing, every)
                else:
                    decoded = future.result()
                    yield StreamedImage(item.name, decoded.pixels, decoded.reason)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def read_frames(item: MediaFile, preprocessing: Preprocessing, every: float) -> Iterator[StreamedImage]:
    """Read the first frame of a video, and then one at or after every `every` seconds, upright and at size.

    Frames go by time stamp. Damaged parts are skipped; a last item without pixels says what was wrong.

    Raises:
        MissingDependency: there is no PyAV.
    """
    require("video", "av", what="a video")
    import av

    reason = None
    try:
        info = os.stat(item.path)
        if not stat.S_ISREG(info.st_mode):
            reason = "not a regular file"
        elif not info.st_size:
            reason = "empty"
        else:  # opened as a file object: FFmpeg takes names such as "concat:…" for protocols
            with item.path.open("rb") as file, av.open(file, options={"format_whitelist": CONTAINERS}) as container:
                reason = yield from _decode_frames(item, container, preprocessing, every)
    except (av.FFmpegError, OSError) as error:
        text = str(getattr(error, "strerror", None) or error).splitlines()[0][:120]
        reason = f"cannot be read as a video: {text}"
    if reason:
        yield StreamedImage(item.name, None, reason)


def _decode_frames(item: MediaFile, container: Any, preprocessing: Preprocessing, every: float):
    """Yield frames; returns what was wrong, or None."""
    import av

    if not container.streams.video:
        return "there is no video in it"
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > decode.MAX_PIXELS or min(width, height) < decode.MIN_SIDE:
        return f"its frames of {width}x{height} are too large or too small"
    frame_rate = float(stream.average_rate or stream.guessed_rate or 25)
    start, due, last, count, damaged = 0.0, 0.0, 0.0, 0, 0
    packets, ended = container.demux(stream), False
    while not ended:
        try:
            frames = next(packets).decode()
        except StopIteration:
            break
        except av.InvalidDataError:  # this packet; the next may be sound
            damaged, frames = damaged + 1, []
        except av.FFmpegError:  # nothing can follow
            damaged, frames, ended = damaged + 1, [], True
        for frame in frames:
            time = count / frame_rate if frame.time is None else float(frame.time)
            start = time if count == 0 else start
            last, count = time - start, count + 1
            if last >= due - 1e-6:
                due = (int(last / every + 1e-6) + 1) * every
                yield StreamedImage(f"{item.name}@{last:.3f}s", _convert_frame(frame, preprocessing), None, last)
    return _describe_damage(count, damaged, last + 1 / frame_rate, _declared_length(stream, container))


def _convert_frame(frame: Any, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    image = decode.convert_to_rgb(frame.to_image())
    if frame.rotation % 360:  # degrees by which a player turns it counter-clockwise
        image = image.rotate(frame.rotation, expand=True)
    return decode.to_pixels(image, preprocessing)


def _declared_length(stream: Any, container: Any) -> float:
    """The length in seconds from the file's metadata; 0 where there is none."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    return float((container.duration or 0) / 1_000_000)


def _describe_damage(count: int, damaged: int, end: float, length: float) -> str | None:
    problems = []
    if damaged:
        problems.append(f"{damaged} damaged part{'s' * (damaged != 1)} skipped")
    if end < length - max(TOLERANCE * length, 0.2):
        problems.append(f"cut off at {end:.1f} s of {length:.1f} s")
    if not count:
        return "no frame can be read" + (f" ({', '.join(problems)})" if problems else "")
    return ", ".join(problems) + "; earlier frames are used" if problems else None
