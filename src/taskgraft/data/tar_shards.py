"""Images in tar shards, as WebDataset packs them: `key.jpg` with `key.cls`, `key.txt` or `key.json`.

Nothing is unpacked: a member is read in place, and is called `shard-000000.tar/key.jpg` everywhere. Names inside an
archive never become paths of files.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
import unicodedata
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from taskgraft.errors import DataError, TaskgraftError

SUFFIX = ".tar"
IMAGES = {"jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "avif"}
LABELS = ("json", "cls", "txt")  # in this order, where an image has several
MAX_LABEL_BYTES = 2**20
NAME = re.compile(r"^((?:.*/)?[^./][^./]*)\.([^/]+)$")  # WebDataset's: the key ends at the first dot of the last part
INVALID = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")  # control characters, and bytes that are not UTF-8


class Span(NamedTuple):
    """Where a member's bytes are in its archive."""

    offset: int
    size: int


class ArchiveIndex(NamedTuple):
    """Members that can be read, by name, and (name, reason) of those that are skipped."""

    spans: Mapping[str, Span]
    skipped: tuple[tuple[str, str], ...]


class Sample(NamedTuple):
    """An image's name in its archive, and its label file: "json", "cls" or "txt", and the content."""

    name: str
    kind: str
    text: bytes


def read_samples(path: Path, skipped: list[tuple[str, str]]) -> Iterator[Sample]:
    """Yield every image of an archive that has a label file, in order; others are added to `skipped` with a reason.

    Raises:
        DataError: the archive is damaged, compressed or not a tar file.
    """
    index = read_index(path)
    skipped += index.skipped
    label_files = {_split_name(name): span for name, span in index.spans.items() if _split_name(name)[1] in LABELS}
    seen: set[str] = set()
    with path.open("rb") as file:
        for name in index.spans:
            key, suffix = _split_name(name)
            if suffix not in IMAGES:
                continue
            kind = next((kind for kind in LABELS if (key, kind) in label_files), None)
            if key in seen:
                skipped.append((name, f"a second image called {key}"))
            elif kind is None:
                skipped.append((name, f"no label file ({', '.join(f'{key}.{kind}' for kind in LABELS)})"))
            elif label_files[key, kind].size > MAX_LABEL_BYTES:
                skipped.append((name, f"its label file is larger than {MAX_LABEL_BYTES} bytes"))
            else:
                seen.add(key)
                yield Sample(name, kind, _read_span(file.fileno(), label_files[key, kind]))


def parse_labels(sample: Sample, tasks: tuple[str, ...]) -> dict[str, str] | str:
    """Parse the class of each task, or return what is wrong; JSON may name tasks, else "label" is the first one's."""
    try:
        text = sample.text.decode("utf-8-sig")
        values = json.loads(text) if sample.kind == "json" else {"label": text}
    except ValueError as error:
        return f"its .{sample.kind} cannot be read: {error}"
    if not isinstance(values, dict):
        return 'its .json is not of the form {"label": …}'
    if "label" in values:
        values.setdefault(tasks[0], values["label"])
    labels = {}
    for task in tasks:
        value = values.get(task)
        if isinstance(value, bool) or not isinstance(value, str | int | None):
            return f"its label for {task} is neither text nor an integer"
        name = unicodedata.normalize("NFC", str("" if value is None else value).strip())
        if name:
            labels[task] = name
    return labels


def list_members(path: Path) -> list[str]:
    """List the names of all images of an archive, labeled or not; raises as `read_samples` does."""
    return [name for name in read_index(path).spans if _split_name(name)[1] in IMAGES]


def read_member(path: Path, max_bytes: int) -> bytes | str | None:
    """Read the member that a path such as `a.tar/key.jpg` names.

    Returns:
        Its bytes, or the reason why it cannot be read; None where the path is in no archive.
    """
    archive = find_archive(path)
    if archive is None:
        return None
    try:
        span = read_index(archive).spans.get(path.relative_to(archive).as_posix())
        if span is None:
            return "no such file in the archive"
        if span.size == 0:
            return "empty"
        if span.size > max_bytes:
            return f"larger than {max_bytes // 2**20} MiB"
        with archive.open("rb") as file:
            return _read_span(file.fileno(), span)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except TaskgraftError as error:
        return f"cannot be read: {error}"


def find_archive(path: Path) -> Path | None:
    """Find the archive that a path is in, or None."""
    return next((parent for parent in path.parents if parent.suffix.lower() == SUFFIX and parent.is_file()), None)


def read_index(path: Path) -> ArchiveIndex:
    """Index an archive; the last few are cached as long as their files do not change.

    Raises:
        DataError: the archive is damaged, compressed or not a tar file.
    """
    try:
        info = os.stat(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; check its permissions") from error
    return _read_index(path, (info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino))


@lru_cache(maxsize=32)  # archives are read one after another; some tens of threads may straddle a few
def _read_index(path: Path, state: tuple[int, ...]) -> ArchiveIndex:
    spans: dict[str, Span] = {}
    skipped: list[tuple[str, str]] = []
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                name = PurePosixPath(member.name).as_posix()  # "./a.jpg" is a.jpg, as in every path
                reason = _find_reason(member, name, spans, state[0])
                if reason:
                    skipped.append((INVALID.sub("?", name), reason))
                elif not member.isdir():
                    spans[name] = Span(member.offset_data, member.size)
            file.seek(archive.offset)
            rest = file.read(tarfile.BLOCKSIZE)
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise DataError(f"{path}: not a whole, uncompressed tar archive ({error}); pack or copy it again") from error
    if rest.strip(b"\0"):  # tarfile takes a damaged header for the end
        raise DataError(f"{path}: damaged at byte {archive.offset}, what follows would be lost; pack or copy it again")
    return ArchiveIndex(spans, tuple(skipped))


def _find_reason(member: tarfile.TarInfo, name: str, spans: Mapping[str, Span], size: int) -> str | None:
    if INVALID.search(name):
        return "its name contains control characters or invalid UTF-8"
    if name.startswith("/") or ".." in PurePosixPath(name).parts:
        return "its name leads out of the archive"
    if member.isdir():
        return None
    if not member.isfile() or member.issparse():
        return "a link, a device or a sparse file"
    key, suffix = _split_name(name)
    if not suffix:
        return "hidden, or without a suffix"
    if suffix not in IMAGES and suffix.rpartition(".")[2] in IMAGES:
        return f"its suffix is .{suffix}, counted from the first dot; rename it to {key}.jpg"
    if name in spans:
        return "is in the archive twice; the first is used"
    if member.offset_data + member.size > size:
        return "cut off"
    return None


def _split_name(name: str) -> tuple[str, str]:
    """The key of a member and its suffix in lower case: "a/b", "jpg"."""
    match = NAME.match(name)
    return (match[1], match[2].lower()) if match else (name, "")


def _read_span(handle: int, span: Span) -> bytes:
    """A member's bytes; raises OSError where the file has become shorter."""
    os.lseek(handle, span.offset, os.SEEK_SET)
    chunks, remaining = [], span.size
    while remaining:
        chunk = os.read(handle, remaining)
        if not chunk:
            raise OSError(5, "the archive has become shorter")
        chunks.append(chunk)
        remaining -= len(chunk)
    return b"".join(chunks)
