"""What a data path holds: folder per class, train/val/test above it, or a table. Lists files, opens none."""

from __future__ import annotations

import csv
import os
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from taskgraft.problem import Problem

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
TABLES = (".csv", ".tsv", ".parquet")
JUNK = {"thumbs.db", "desktop.ini", "__macosx", ".ipynb_checkpoints", ".ds_store"}
TEXT = {".csv", ".tsv", ".parquet", ".txt", ".json", ".jsonl", ".md", ".yaml", ".yml"}


class Entry(NamedTuple):
    """One file: its path below the root, its split (None = not said) and its class for each labelled task."""

    path: str
    split: str | None
    labels: Mapping[str, str]


class Listing(NamedTuple):
    """All files that a data path names; `skipped` holds (path, reason); `kind` says what was recognised."""

    root: Path
    entries: tuple[Entry, ...]
    skipped: tuple[tuple[str, str], ...]
    kind: str


def list_images(data: Path, task: str, columns: tuple[str, ...] = ()) -> Listing:
    """List a folder or table; `task` names the labels, `columns` further label columns of a table.

    Raises Problem when there is nothing at `data` or its layout is not understood.
    """
    if not data.exists():
        raise Problem(f"{data} does not exist; give a folder with one sub-folder per class, or a CSV file")
    if data.is_file():
        return _table(data, task, columns)
    table = data / "metadata.csv"
    if table.is_file():
        return _table(table, task, columns)
    return _folders(data, task)


def _folders(root: Path, task: str) -> Listing:
    skipped: list[tuple[str, str]] = []
    found = list(inside(root, root, skipped))
    splits = [item for item in found if item.is_dir() and item.name.lower() in SPLITS]
    others = [item for item in found if item.is_dir() and item not in splits]
    if splits and others:
        raise Problem(
            f"{root} holds both split folders ({splits[0].name}) and others ({others[0].name}); "
            "use either train/ val/ test/ with class folders inside, or class folders alone"
        )
    entries: list[Entry] = []
    for base in splits or [root]:
        split = SPLITS[base.name.lower()] if splits else None
        for item in inside(base, root, skipped) if splits else found:
            where = item.relative_to(root).as_posix()
            if not item.is_dir():
                if item.suffix.lower() not in TEXT:
                    skipped.append((where, "not in a class folder"))
                continue
            entries.extend(_class_folder(item, root, split, task, skipped))
    if not entries:
        raise Problem(
            f"{root} holds no class folder with pictures; expected {root.name}/<class>/<picture> "
            f"or {root.name}/train/<class>/<picture>"
        )
    kind = "folders " + ", ".join(sorted({item.name for item in splits})) if splits else "one folder per class"
    return Listing(root, tuple(entries), tuple(skipped), kind)


def _class_folder(
    folder: Path, root: Path, split: str | None, task: str, skipped: list[tuple[str, str]]
) -> Iterator[Entry]:
    label = unicodedata.normalize("NFC", folder.name)
    found = False
    for item in inside(folder, root, skipped):
        where = item.relative_to(root).as_posix()
        if item.is_dir():
            raise Problem(
                f"{where} is a folder inside the class folder {folder.name!r}; "
                "pictures must lie directly in their class folder: <class>/<picture>"
            )
        found = True
        yield Entry(where, split, {task: label})
    if not found:
        raise Problem(f"class folder {folder.relative_to(root).as_posix()!r} holds no picture; fill or remove it")


def inside(folder: Path, root: Path, skipped: list[tuple[str, str]]) -> Iterator[Path]:
    """What lies in a folder, in a fixed order; hidden files and links that leave the root are skipped."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise Problem(f"{folder} cannot be read: {error.strerror}") from error
    home = _real(root)
    for name in names:
        item = folder / name
        where = item.relative_to(root).as_posix()
        if name.startswith(".") or name.lower() in JUNK:
            skipped.append((where, "hidden or system file"))
        elif item.is_symlink() and not _real(item).is_relative_to(home):
            skipped.append((where, "a link to outside the data folder"))
        else:
            yield item


def leaves(root: Path, path: Path) -> bool:
    """Whether a path, links followed, lies outside a folder."""
    return not _real(path).is_relative_to(_real(root))


def _real(path: Path) -> Path:
    """Where a path leads; unlike `Path.resolve` before Python 3.13 this does not raise on a circle of links."""
    return Path(os.path.realpath(path))


def _table(path: Path, task: str, columns: tuple[str, ...]) -> Listing:
    rows = rows_of(path)
    number, header = next(rows, (1, {}))
    names = tuple(header)
    key = next((name for name in ("path", "file_name", "filename") if name in names), None)
    if key is None:
        raise Problem(f"{path}: needs a column 'path'; found {', '.join(names) or 'no columns'}")
    own = _label_column(path, task, names, key)
    wanted = {task: own, **{column: column for column in columns if column in names}}
    root, entries, skipped, seen = path.parent, [], [], set()
    for number, row in rows_of(path):
        where = (row[key] or "").strip()
        labels = {name: (row[column] or "").strip() for name, column in wanted.items()}
        labels = {name: unicodedata.normalize("NFC", label) for name, label in labels.items() if label}
        split = (row.get("split") or "").strip().lower() or None
        if not where:
            raise Problem(f"{path} line {number}: the path is blank")
        if split is not None and split not in SPLITS:
            raise Problem(f"{path} line {number}: split {split!r} is none of {', '.join(SPLITS)}")
        if leaves(root, root / where):
            raise Problem(f"{path} line {number}: {where!r} leaves the table's folder; only files below it are read")
        if where in seen:
            raise Problem(f"{path} line {number}: {where!r} stands in the table twice; keep one row")
        seen.add(where)
        if not (root / where).exists():
            skipped.append((where, f"line {number}: no such file"))
        elif labels:
            entries.append(Entry(where, SPLITS[split] if split else None, labels))
    if not entries:
        raise Problem(f"{path}: no row has a label in column {own!r} and a file that exists")
    return Listing(root, tuple(entries), tuple(skipped), f"table, labels from column {own!r}")


def _label_column(path: Path, task: str, names: tuple[str, ...], key: str) -> str:
    if task in names:
        return task
    if "label" in names:
        return "label"
    free = [name for name in names if name not in (key, "split")]
    if len(free) == 1:
        return free[0]
    raise Problem(f"{path}: which column holds the labels? --task NAME picks one of {', '.join(free) or '(none)'}")


def rows_of(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows of a table with their line numbers, as text."""
    if path.suffix.lower() not in TABLES:
        raise Problem(f"{path} is a file but no table; give a folder, or a .csv, .tsv or .parquet file")
    if path.suffix.lower() == ".parquet":
        yield from _parquet(path)
        return
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter=delimiter, strict=True)
            for row in reader:
                if None in row or None in row.values():
                    raise Problem(f"{path} line {reader.line_num}: the number of fields differs from the header's")
                yield reader.line_num, row
    except (UnicodeDecodeError, csv.Error) as error:
        raise Problem(f"{path}: not a readable UTF-8 table: {error}") from error


def _parquet(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        import pyarrow.parquet as parquet  # pyright: ignore[reportMissingImports] - an extra
    except ImportError as error:
        raise Problem("Parquet tables need the extra: pip install 'taskgraft[parquet]'", code=3) from error
    for number, row in enumerate(parquet.read_table(path).to_pylist(), start=1):
        yield number, {name: "" if value is None else str(value) for name, value in row.items()}
