"""Curation by name: merge class folders by a pattern, drop small classes; no image is touched."""

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
    """The entries that remain, and what became of each class name: new name, or None where it was dropped."""

    entries: tuple[Entry, ...]
    renamed: dict[str, str | None]
    dropped: dict[str, int]  # merged class -> how many training images it had


def group_classes(listing: Listing, task: str, pattern: str | None, min_images: int) -> Curated:
    r"""Rename each class to the pattern's groups joined by '_', then drop classes under `min_images`.

    A pattern such as `^([^_]+)_` keeps the make of make_model_year. Named or plain groups; without a group the
    whole match counts. Training images are counted where there is a split, all otherwise. Raises TaskgraftError for a
    bad pattern, one that matches no class, or when fewer than two classes remain.
    """
    names = sorted({entry.labels[task] for entry in listing.entries})
    merged = {name: _merge(name, pattern) for name in names} if pattern else {name: name for name in names}
    if not any(merged.values()):
        raise DataError(
            f"--group {pattern!r} matches none of the {len(names)} class names; "
            f"write one that fits such names as {names[0]!r}"
        )
    counted = Counter(merged[entry.labels[task]] for entry in listing.entries if entry.split in (None, "train"))
    small = {name: counted[name] for name in set(merged.values()) if name and counted[name] < min_images}
    renamed = {name: new if new and new not in small else None for name, new in merged.items()}
    entries = tuple(
        entry._replace(labels={**entry.labels, task: new})
        for entry in listing.entries
        if (new := renamed[entry.labels[task]])
    )
    kept = {new for new in renamed.values() if new}
    if len(kept) < 2 and (pattern or min_images):
        raise DataError(
            f"--min-images {min_images} leaves {len(kept)} class(es) of {len(names)}, and two are needed; lower it"
        )
    return Curated(entries, renamed, small)


def write_manifest(path: Path, root: Path, entries: tuple[Entry, ...], task: str) -> None:
    """Write `path, split, <task>` as CSV; paths are relative to the table's own folder or its parents' below it.

    Raises TaskgraftError when the table would lie where it cannot name the images, replace another file, or name a file
    whose name is no text.
    """
    home = path.resolve().parent
    if not root.resolve().is_relative_to(home):
        raise DataError(f"{path} lies where its rows cannot name the images; give a place in {root} or above it")
    prefix = root.resolve().relative_to(home)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "split", task])
    for entry in entries:
        where = (prefix / entry.path).as_posix()
        if shown(where) != where:
            raise DataError(f"{shown(where)} has a name that is no UTF-8; rename it, so that a table can name it")
        writer.writerow([where, entry.split or "", entry.labels[task]])
    if path.exists() and path.read_text(encoding="utf-8", errors="replace") != text.getvalue():
        raise DataError(f"{path} exists and holds something else; choose another file for the table")
    write_asked(path, text.getvalue())


def _merge(name: str, pattern: str) -> str | None:
    try:
        found = re.search(pattern, name)
    except re.error as error:
        raise DataError(f"--group {pattern!r} is no regular expression: {error}; mend it there") from error
    if not found:
        return None
    return "_".join(part for part in found.groups() if part) if found.groups() else found.group(0)
