"""What a data path holds: folder per class or tar shards, train/val/test above them, or a table. Opens no image."""

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
NOT_A_NAME = {"nan", "<na>"}  # what tools write for a label that is missing
JUNK = {"thumbs.db", "desktop.ini", "__macosx", ".ipynb_checkpoints", ".ds_store"}
TEXT_SUFFIXES = {".csv", ".tsv", ".parquet", ".txt", ".json", ".jsonl", ".md", ".yaml", ".yml"}


class Entry(NamedTuple):
    """One file: its path below the root, its split (None = not said) and its class for each labeled task.

    A member of an archive has the path `a.tar/key.jpg`.
    """

    path: str
    split: str | None
    labels: Mapping[str, str]


class Listing(NamedTuple):
    """All files that a data path names; `skipped` holds (path, reason); `layout` says what was recognized."""

    root: Path
    entries: tuple[Entry, ...]
    skipped: tuple[tuple[str, str], ...]
    layout: str


def list_images(data: Path, task: str, columns: tuple[str, ...] = ()) -> Listing:
    """List a folder or table; `task` names the labels, `columns` further label columns of a table.

    Raises TaskgraftError when there is nothing at `data` or its layout is not understood.
    """
    if not data.exists():
        raise DataError(f"{data} does not exist; give a folder with one sub-folder per class, or a CSV file")
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
    """The table of a data path: itself, or metadata.csv in a folder; None for other folders and archives."""
    if data.is_dir():
        table = data / "metadata.csv"
        return table if table.is_file() else None
    return None if data.suffix.lower() == tar_shards.SUFFIX else data


def _archives(root: Path, found: list[Path], skipped: list[tuple[str, str]]) -> Iterator[tuple[str | None, Path]]:
    """Archives in a folder, or in its split folders, with their splits; skips what else lies among them."""
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
            f"{root} holds tar archives and {other.relative_to(root).as_posix()} beside them; "
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
        raise DataError(f"{root}: no image in the archives has a label; expected key.jpg beside key.cls{first}")
    parts = ", ".join(sorted({split for split, _ in shards if split}))
    return Listing(root, tuple(entries), tuple(skipped), f"tar shards {parts}".strip())


def _folders(root: Path, task: str, found: list[Path], skipped: list[tuple[str, str]]) -> Listing:
    splits = [item for item in found if item.is_dir() and item.name.lower() in SPLITS]
    others = [item for item in found if item.is_dir() and item not in splits]
    if splits and others:
        raise DataError(
            f"{root} holds both split folders ({splits[0].name}) and others ({others[0].name}); "
            "use either train/ val/ test/ with class folders inside, or class folders alone"
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
            f"{root} holds no class folder with images; expected {root.name}/<class>/<image> "
            f"or {root.name}/train/<class>/<image>"
        )
    layout = "folders " + ", ".join(sorted({item.name for item in splits})) if splits else "one folder per class"
    return Listing(root, tuple(entries), tuple(skipped), layout)


def _class_folder(
    folder: Path, root: Path, split: str | None, task: str, skipped: list[tuple[str, str]]
) -> Iterator[Entry]:
    labels = {task: unicodedata.normalize("NFC", folder.name)}  # one dictionary for all: there may be a million rows
    where = None
    for where, item in _scan(folder, root, skipped):
        if _is_folder(item):
            raise DataError(
                f"{where} is a folder inside the class folder {folder.name!r}; "
                "images must lie directly in their class folder: <class>/<image>"
            )
        yield Entry(where, split, labels)
    if where is None:
        raise DataError(f"class folder {folder.relative_to(root).as_posix()!r} holds no image; fill or remove it")


def list_folder(folder: Path, root: Path, skipped: list[tuple[str, str]]) -> Iterator[Path]:
    """What lies in a folder, in a fixed order; hidden files and links that leave the root are skipped."""
    for _, item in _scan(folder, root, skipped):
        yield folder / item.name


def _scan(folder: Path, root: Path, skipped: list[tuple[str, str]]) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """The same with each one's path below the root; there may be a million, so no `Path` is made of them."""
    try:
        with os.scandir(folder) as found:
            items = sorted(found, key=lambda item: item.name)
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}; check its rights") from error
    home, above = _real(root), "" if folder == root else f"{folder.relative_to(root).as_posix()}/"
    for item in items:
        where = f"{above}{item.name}"
        if item.name.startswith(".") or item.name.lower() in JUNK:
            skipped.append((where, "hidden or system file"))
        elif item.is_symlink() and not _real(Path(item.path)).is_relative_to(home):
            skipped.append((where, "a link to outside the data folder"))
        else:
            yield where, item


def _is_folder(item: os.DirEntry[str]) -> bool:
    """Without asking the system again, but for a link; one that leads nowhere or in a circle is no folder."""
    return os.path.isdir(item.path) if item.is_symlink() else item.is_dir()


def is_outside(root: Path, path: Path) -> bool:
    """Whether a path, links followed, lies outside a folder."""
    return not _real(path).is_relative_to(_real(root))


def _leaving(root: Path) -> Callable[[str], bool]:
    """`is_outside` for a million paths below one root: folders are followed once, and files only if they are links."""
    folders: dict[str, bool] = {}

    def leaving(where: str) -> bool:
        folder, name = os.path.split(os.path.join(root, where))
        if name in ("", "..") or os.path.islink(os.path.join(folder, name)):
            return is_outside(root, root / where)
        if folder not in folders:
            folders[folder] = is_outside(root, Path(folder))
        return folders[folder]

    return leaving


def _real(path: Path) -> Path:
    """Where a path leads; unlike `Path.resolve` before Python 3.13 this does not raise on a circle of links."""
    return Path(os.path.realpath(path))


def _table(path: Path, task: str, columns: tuple[str, ...]) -> Listing:
    rows = read_table(path)
    number, header = next(rows, (1, {}))
    names = tuple(header)
    key = next((name for name in ("path", "file_name", "filename") if name in names), None)
    if key is None:
        raise DataError(f"{path}: there is no column 'path' among {', '.join(names) or 'none at all'}; add it")
    own = _label_column(path, task, names, key)
    kept = {task: own, **{column: column for column in columns if column in names}}
    root, entries, skipped, seen = path.parent, [], [], set()
    leaving = _leaving(root)
    shared: dict[tuple[tuple[str, str], ...], dict[str, str]] = {}
    for number, row in read_table(path):
        where = (row[key] or "").strip()
        labels = {name: (row[column] or "").strip() for name, column in kept.items()}
        labels = {name: unicodedata.normalize("NFC", label) for name, label in labels.items() if label}
        split = (row.get("split") or "").strip().lower() or None
        if not where:
            raise DataError(f"{path} line {number}: the path is blank; fill it in or remove the line")
        if "\0" in where:
            raise DataError(f"{path} line {number}: the path {where!r} holds a zero byte; mend it")
        wrong = [label for label in labels.values() if label.lower() in NOT_A_NAME]
        if wrong:
            raise DataError(f"{path} line {number}: the label {wrong[0]!r} is no name; leave it blank if there is none")
        if split is not None and split not in SPLITS:
            raise DataError(f"{path} line {number}: split {split!r} is not known; write one of {', '.join(SPLITS)}")
        if leaving(where):
            raise DataError(f"{path} line {number}: {where!r} is outside the table's folder; use paths below it")
        if where in seen:
            raise DataError(f"{path} line {number}: {where!r} stands in the table twice; keep one row")
        seen.add(where)
        if not os.path.exists(os.path.join(root, where)) and tar_shards.find_archive(root / where) is None:
            skipped.append((where, f"line {number}: no such file"))
        elif labels:
            same = shared.setdefault(tuple(labels.items()), labels)  # rows share their dictionaries
            entries.append(Entry(where, SPLITS[split] if split else None, same))
    if not entries:
        raise DataError(
            f"{path}: no row has a label in column {own!r} and a file that exists; mend its paths or fill in its labels"
        )
    return Listing(root, tuple(entries), tuple(skipped), f"table, labels from column {own!r}")


def _label_column(path: Path, task: str, names: tuple[str, ...], key: str) -> str:
    if task in names:
        return task
    if "label" in names:
        return "label"
    free = [name for name in names if name not in (key, "split")]
    if len(free) == 1:
        return free[0]
    raise DataError(
        f"{path} does not tell which column holds the labels; give --task NAME, one of {', '.join(free) or '(none)'}"
    )


def read_table(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows of a table with their line numbers, as text."""
    if path.suffix.lower() not in TABLE_SUFFIXES:
        raise DataError(f"{path} is a file but no table; give a folder, or a .csv, .tsv or .parquet file")
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
                        f"{path} line {reader.line_num}: the number of fields differs from the header's; mend that line"
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
            f"{path}: not a readable Parquet table: {str(error).splitlines()[0][:160]}; write it anew"
        ) from error
    for number, row in enumerate(rows, start=1):
        yield number, {name: "" if value is None else str(value) for name, value in row.items()}
