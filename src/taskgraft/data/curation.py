"""Merge classes by a pattern and drop small ones, by name alone; no image is touched."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from taskgraft.data.layouts import Entry, Listing
from taskgraft.errors import DataError
from taskgraft.results.files import shown, write_asked


class Curated(NamedTuple):
    """The remaining entries, the new name of each class (None = dropped), and the image counts of dropped classes."""

    entries: tuple[Entry, ...]
    renamed: dict[str, str | None]
    dropped: dict[str, int]


def group_classes(listing: Listing, task: str, pattern: str | None, min_images: int) -> Curated:
    r"""Rename each class to the pattern's groups joined by '_', then drop classes under `min_images`.

    A pattern such as `^([^_]+)_` keeps the make of make_model_year. Named or plain groups; without a group the
    whole match is the name. Training images are counted where there is a split, all images otherwise.

    Raises:
        DataError: the pattern is invalid or matches no class, or fewer than two classes remain.
    """
    names = sorted({entry.labels[task] for entry in listing.entries})
    merged = {name: _apply_pattern(name, pattern) for name in names} if pattern else {name: name for name in names}
    if not any(merged.values()):
        raise DataError(
            f"--group {pattern!r} matches none of the {len(names)} class names; they look like {names[0]!r}"
        )
    counts = Counter(merged[entry.labels[task]] for entry in listing.entries if entry.split in (None, "train"))
    small = {name: counts[name] for name in set(merged.values()) if name and counts[name] < min_images}
    renamed = {name: new if new and new not in small else None for name, new in merged.items()}
    entries = tuple(
        entry._replace(labels={**entry.labels, task: new})
        for entry in listing.entries
        if (new := renamed[entry.labels[task]])
    )
    remaining = {new for new in renamed.values() if new}
    if len(remaining) < 2 and (pattern or min_images):
        raise DataError(f"--group and --min-images leave {len(remaining)} of {len(names)} classes, but two are needed")
    return Curated(entries, renamed, small)


def write_manifest(path: Path, root: Path, entries: tuple[Entry, ...], task: str) -> None:
    """Write `path, split, <task>` as CSV, with paths relative to the table's own folder.

    Raises:
        DataError: the images are not below the table's folder, another file would be replaced, or a file's name is not
            valid UTF-8.
        InputError: the table cannot be written.
    """
    folder = path.resolve().parent
    if not root.resolve().is_relative_to(folder):
        raise DataError(f"{path} is not above the images; write it to {root} or a folder above it")
    prefix = root.resolve().relative_to(folder)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "split", task])
    for entry in entries:
        name = (prefix / entry.path).as_posix()
        if shown(name) != name:
            raise DataError(f"{shown(name)} has a name that is not valid UTF-8; rename the file")
        writer.writerow([name, entry.split or "", entry.labels[task]])
    if path.exists() and path.read_text(encoding="utf-8", errors="replace") != text.getvalue():
        raise DataError(f"{path} already exists with other content; choose another file")
    write_asked(path, text.getvalue())


def _apply_pattern(name: str, pattern: str) -> str | None:
    try:
        found = re.search(pattern, name)
    except re.error as error:
        raise DataError(f"--group {pattern!r} is not a valid regular expression: {error}") from error
    if not found:
        return None
    return "_".join(part for part in found.groups() if part) if found.groups() else found.group(0)
