"""Lists the images of a data path: class folders or tar shards, perhaps in train/val/test, or a table.

No image is opened.
"""

from __future__ import annotations

import csv
import os
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from taskgraft.data import tar_shards
from taskgraft.errors import DataError, require

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
TABLE_SUFFIXES = (".csv", ".tsv", ".parquet")
MISSING_LABELS = {"nan", "<na>"}  # what tools write for a label that is missing
IGNORED_NAMES = {"thumbs.db", "desktop.ini", "__macosx", ".ipynb_checkpoints", ".ds_store"}
TEXT_SUFFIXES = {".csv", ".tsv", ".parquet", ".txt", ".json", ".jsonl", ".md", ".yaml", ".yml"}


class Entry(NamedTuple):
    """An image: its path below the root (`a.tar/key.jpg` in an archive), split (or None), and class for each task."""

    path: str
    split: str | None
    labels: Mapping[str, str]


class Listing(NamedTuple):
    """The images of a data path; `skipped` holds (path, reason), `layout` tells what was recognized."""

    root: Path
    entries: tuple[Entry, ...]
    skipped: tuple[tuple[str, str], ...]
    layout: str


def list_images(data: Path, task: str, columns: tuple[str, ...] = ()) -> Listing:
    """List the images of a folder, archive or table.

    Args:
        data: the data path.
        task: name of the labels.
        columns: further label columns of a table, or keys of an archive's JSON.

    Raises:
        DataError: there is nothing at `data`, or its layout is not understood.
        MissingDependency: a Parquet table, but no pyarrow.
    """
    if not data.exists():
        raise DataError(f"{data} does not exist; expected a folder with one sub-folder per class, or a table")
    table = find_table(data)
    if table:
        return _table(table, task, columns)
    if data.is_file():
        return _shards(data.parent, [(None, data)], [], (task, *columns))
    skipped: list[tuple[str, str]] = []
    found = list(list_folder(data, data, skipped))
    shards = list(_archives(data, found, skipped))
    return _shards(data, shards, skipped, (task, *columns)) if shards else _folders(data, task, found, skipped)


def find_table(data: Path) -> Path | None:
    """Find the table of a data path: itself, or metadata.csv in a folder; None for other folders and archives."""
    if data.is_dir():
        table = data / "metadata.csv"
        return table if table.is_file() else None
    return None if data.suffix.lower() == tar_shards.SUFFIX else data


def _archives(root: Path, found: list[Path], skipped: list[tuple[str, str]]) -> Iterator[tuple[str | None, Path]]:
    """Archives in a folder or its split folders, with their splits; other files among them are skipped."""
    splits = [item for item in found if item.name.lower() in SPLITS and item.is_dir()]
    left: list[tuple[str, str]] = []
    groups = [(None, found)] + [(SPLITS[item.name.lower()], list(list_folder(item, root, left))) for item in splits]
    shards = [(split, item) for split, items in groups for item in items if item.suffix.lower() == tar_shards.SUFFIX]
    folders = [item for _, items in groups for item in items if item not in splits and item.is_dir()]
    if not shards:
        return
    if folders or {split for split, _ in shards} > {None}:
        other = folders[0] if folders else next(item for split, item in shards if split is None)
        raise DataError(
            f"{root} mixes tar archives with {other.relative_to(root).as_posix()}; "
            "use archives alone, in the folder or in train/ val/ test/"
        )
    files = [item for _, items in groups for item in items if item not in splits]
    strays = [
        item.relative_to(root).as_posix()
        for item in files
        if item.suffix.lower() not in {*TEXT_SUFFIXES, tar_shards.SUFFIX}
    ]
    skipped += [*left, *((where, "not in an archive") for where in strays)]
    yield from shards


def _shards(
    root: Path, shards: list[tuple[str | None, Path]], skipped: list[tuple[str, str]], tasks: tuple[str, ...]
) -> Listing:
    entries: list[Entry] = []
    shared: dict[tuple[tuple[str, str], ...], dict[str, str]] = {}
    for split, path in shards:
        where, left = path.relative_to(root).as_posix(), []
        for sample in tar_shards.read_samples(path, left):
            labels = tar_shards.parse_labels(sample, tasks)
            if isinstance(labels, str):
                left.append((sample.name, labels))
            elif labels:
                same = shared.setdefault(tuple(labels.items()), labels)
                entries.append(Entry(f"{where}/{sample.name}", split, same))
        skipped += [(f"{where}/{name}", reason) for name, reason in left]
    if not entries:
        first = f"; first: {skipped[0][0]} ({skipped[0][1]})" if skipped else ""
        raise DataError(f"{root}: no image in the archives has a label; expected key.jpg with key.cls{first}")
    parts = ", ".join(sorted({split for split, _ in shards if split}))
    return Listing(root, tuple(entries), tuple(skipped), f"tar shards {parts}".strip())


def _folders(root: Path, task: str, found: list[Path], skipped: list[tuple[str, str]]) -> Listing:
    splits = [item for item in found if item.is_dir() and item.name.lower() in SPLITS]
    others = [item for item in found if item.is_dir() and item not in splits]
    if splits and others:
        raise DataError(
            f"{root} has both split folders ({splits[0].name}) and others ({others[0].name}); "
            "use either train/ val/ test/ with class folders inside, or class folders only"
        )
    entries: list[Entry] = []
    for base in splits or [root]:
        split = SPLITS[base.name.lower()] if splits else None
        for item in list_folder(base, root, skipped) if splits else found:
            where = item.relative_to(root).as_posix()
            if not item.is_dir():
                if item.suffix.lower() not in TEXT_SUFFIXES:
                    skipped.append((where, "not in a class folder"))
                continue
            entries.extend(_class_folder(item, root, split, task, skipped))
    if not entries:
        raise DataError(
            f"{root} has no class folder with images; expected {root.name}/<class>/<image> "
            f"or {root.name}/train/<class>/<image>"
        )
    layout = "folders " + ", ".join(sorted({item.name for item in splits})) if splits else "one folder per class"
    return Listing(root, tuple(entries), tuple(skipped), layout)


def _class_folder(
    folder: Path, root: Path, split: str | None, task: str, skipped: list[tuple[str, str]]
) -> Iterator[Entry]:
    labels = {task: unicodedata.normalize("NFC", folder.name)}  # shared by all entries: there may be a million
    where = None
    for where, item in _scan(folder, root, skipped):
        if _is_folder(item):
            raise DataError(
                f"{where} is a folder inside the class folder {folder.name!r}; "
                "images must be directly in their class folder: <class>/<image>"
            )
        yield Entry(where, split, labels)
    if where is None:
        raise DataError(f"class folder {folder.relative_to(root).as_posix()!r} has no images; add some or remove it")


def list_folder(folder: Path, root: Path, skipped: list[tuple[str, str]]) -> Iterator[Path]:
    """List a folder in a fixed order; hidden files and links that leave the root are added to `skipped`."""
    for _, item in _scan(folder, root, skipped):
        yield folder / item.name


def _scan(folder: Path, root: Path, skipped: list[tuple[str, str]]) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """The same with paths below the root; there may be a million, so no `Path` is built."""
    try:
        with os.scandir(folder) as found:
            items = sorted(found, key=lambda item: item.name)
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}; check its permissions") from error
    home, above = _real(root), "" if folder == root else f"{folder.relative_to(root).as_posix()}/"
    for item in items:
        where = f"{above}{item.name}"
        if item.name.startswith(".") or item.name.lower() in IGNORED_NAMES:
            skipped.append((where, "hidden or system file"))
        elif item.is_symlink() and not _real(Path(item.path)).is_relative_to(home):
            skipped.append((where, "a link to outside the data folder"))
        else:
            yield where, item


def _is_folder(item: os.DirEntry[str]) -> bool:
    """Only links need another system call; one that is dangling or circular is not a folder."""
    return os.path.isdir(item.path) if item.is_symlink() else item.is_dir()


def is_outside(root: Path, path: Path) -> bool:
    """Whether a path, links followed, is outside a folder."""
    return not _real(path).is_relative_to(_real(root))


def _outside_check(root: Path) -> Callable[[str], bool]:
    """`is_outside` for a million paths below one root: folders are followed once, and files only if they are links."""
    folders: dict[str, bool] = {}

    def check(where: str) -> bool:
        folder, name = os.path.split(os.path.join(root, where))
        if name in ("", "..") or os.path.islink(os.path.join(folder, name)):
            return is_outside(root, root / where)
        if folder not in folders:
            folders[folder] = is_outside(root, Path(folder))
        return folders[folder]

    return check


def _real(path: Path) -> Path:
    """Where a path leads; unlike `Path.resolve` before Python 3.13 this does not raise on a circle of links."""
    return Path(os.path.realpath(path))


def _table(path: Path, task: str, columns: tuple[str, ...]) -> Listing:
    rows = read_table(path)
    number, header = next(rows, (1, {}))
    names = tuple(header)
    key = next((name for name in ("path", "file_name", "filename") if name in names), None)
    if key is None:
        raise DataError(f"{path}: no column 'path' among {', '.join(names) or 'none at all'}; add it")
    column = _label_column(path, task, names, key)
    label_columns = {task: column, **{name: name for name in columns if name in names}}
    root, entries, skipped, seen = path.parent, [], [], set()
    leaves_root = _outside_check(root)
    shared: dict[tuple[tuple[str, str], ...], dict[str, str]] = {}
    for number, row in read_table(path):
        where = (row[key] or "").strip()
        labels = {name: (row[header_name] or "").strip() for name, header_name in label_columns.items()}
        labels = {name: unicodedata.normalize("NFC", label) for name, label in labels.items() if label}
        split = (row.get("split") or "").strip().lower() or None
        if not where:
            raise DataError(f"{path} line {number}: the path is blank; fill it in or remove the row")
        if "\0" in where:
            raise DataError(f"{path} line {number}: the path {where!r} contains a NUL byte")
        wrong = [label for label in labels.values() if label.lower() in MISSING_LABELS]
        if wrong:
            raise DataError(
                f"{path} line {number}: the label {wrong[0]!r} is not a class name; leave it blank if there is none"
            )
        if split is not None and split not in SPLITS:
            raise DataError(f"{path} line {number}: split {split!r} is unknown; use one of {', '.join(SPLITS)}")
        if leaves_root(where):
            raise DataError(f"{path} line {number}: {where!r} is outside the table's folder; use paths below it")
        if where in seen:
            raise DataError(f"{path} line {number}: {where!r} is in the table twice; keep one row")
        seen.add(where)
        if not os.path.exists(os.path.join(root, where)) and tar_shards.find_archive(root / where) is None:
            skipped.append((where, f"line {number}: no such file"))
        elif labels:
            same = shared.setdefault(tuple(labels.items()), labels)  # rows share their dictionaries
            entries.append(Entry(where, SPLITS[split] if split else None, same))
    if not entries:
        raise DataError(
            f"{path}: no row has a label in column {column!r} and a file that exists; fix its paths or add labels"
        )
    return Listing(root, tuple(entries), tuple(skipped), f"table, labels from column {column!r}")


def _label_column(path: Path, task: str, names: tuple[str, ...], key: str) -> str:
    if task in names:
        return task
    if "label" in names:
        return "label"
    free = [name for name in names if name not in (key, "split")]
    if len(free) == 1:
        return free[0]
    if not free:
        raise DataError(f"{path} has no column with labels; add one")
    raise DataError(f"{path} has several columns that may hold the labels; choose one with --task: {', '.join(free)}")


def read_table(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line number, row as text) of a CSV, TSV or Parquet table.

    Raises:
        DataError: the file is not a table, or damaged.
        MissingDependency: Parquet, but no pyarrow.
    """
    if path.suffix.lower() not in TABLE_SUFFIXES:
        raise DataError(f"{path} is not a table; use a folder, or a .csv, .tsv or .parquet file")
    if path.suffix.lower() == ".parquet":
        yield from _parquet(path)
        return
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter=delimiter, strict=True)
            for row in reader:
                if None in row or None in row.values():
                    raise DataError(
                        f"{path} line {reader.line_num}: the number of fields differs from the header's; fix that line"
                    )
                yield reader.line_num, row
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a readable UTF-8 table: {error}; save it as CSV in UTF-8") from error


def _parquet(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    require("parquet", "pyarrow", what="a Parquet table")
    import pyarrow.parquet as parquet  # pyright: ignore[reportMissingImports] - an extra

    try:
        rows = parquet.read_table(path).to_pylist()
    except (OSError, ValueError) as error:  # pyarrow's errors are of these
        raise DataError(
            f"{path}: not a readable Parquet table: {str(error).splitlines()[0][:160]}; write it again"
        ) from error
    for number, row in enumerate(rows, start=1):
        yield number, {name: "" if value is None else str(value) for name, value in row.items()}
