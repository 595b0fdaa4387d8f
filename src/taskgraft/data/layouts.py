"""Lists the images of a data path: class folders or tar shards, perhaps in train/val/test, or a table.

No image is opened.
"""

from __future__ import annotations

import csv
import io
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from taskgraft.data import decode, tar_shards
from taskgraft.data.tables import (
    LABEL_COLUMNS,
    PATH_COLUMNS,
    SPLIT_COLUMNS,
    ImageTable,
    find_columns,
    is_outside,
    open_table,
)
from taskgraft.errors import DataError
from taskgraft.results.files import escape_surrogates, write_output

SPLITS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "eval": "val", "evaluation": "val", "test": "test", "testing": "test",
}  # fmt: skip
SPLIT_NAME = re.compile(rf"({'|'.join(SPLITS)})(?:[\s_-]*(?:set|data|images|split))?", re.IGNORECASE)
SPLIT_HINT = f"splits are called {', '.join(SPLITS)}, in any case, also with -set, -data or -images behind"
MAX_WRAPPERS = 3  # folders around the real root that an archive may have been unpacked into
UNNAMED = re.compile(r"Unnamed: \d+$")  # pandas' name of a column without one
MISSING_LABELS = {"nan", "<na>"}  # what tools write for a label that is missing
IGNORED_NAMES = {  # what systems and network drives leave behind
    "#recycle", "$recycle.bin", ".ds_store", ".ipynb_checkpoints", "@eadir", "__macosx", "desktop.ini", "ehthumbs.db",
    "lost+found", "system volume information", "thumbs.db",
}  # fmt: skip
SIDE_SUFFIXES = {  # of files that lie beside images and are none: annotations, features, lists, leftovers
    ".bak", ".cfg", ".csv", ".db", ".doc", ".docx", ".feather", ".h5", ".hdf5", ".html", ".ini", ".ipynb", ".json",
    ".jsonl", ".log", ".lst", ".mat", ".md", ".md5", ".npy", ".npz", ".parquet", ".pickle", ".pkl", ".pt",
    ".pth", ".py", ".sha256", ".toml", ".tsv", ".txt", ".xls", ".xlsx", ".xml", ".xmp", ".yaml", ".yml",
}  # fmt: skip

Skipped = list[tuple[str, str]]  # (path, reason)


class Entry(NamedTuple):
    """An image: its path below the root (`a.tar/key.jpg` in an archive), split (or None), and class for each task."""

    path: str
    split: str | None
    labels: Mapping[str, str]


class Listing(NamedTuple):
    """The images of a data path.

    Attributes:
        root: folder that the paths are relative to.
        entries: the images.
        skipped: (path, reason) of what was left out.
        layout: the recognized layout, in words.
        missing: (path, reason) of images that are named but do not exist; they count among those that cannot be used.
        notes: what was assumed.
        classes: class names in the order that the source gives them; empty = sorted by name.
    """

    root: Path
    entries: tuple[Entry, ...]
    skipped: tuple[tuple[str, str], ...]
    layout: str
    missing: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()


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
    if data.is_dir():
        root = find_root(data)
        listing = _list_root(root, task, columns)
        where = root.relative_to(data).as_posix()
        note = f"the images are in {where}/, the only folder of {data.resolve().name}"
        return listing if root == data else listing._replace(notes=(note, *listing.notes))
    return _list_root(data, task, columns)


def _list_root(data: Path, task: str, columns: tuple[str, ...]) -> Listing:
    table = find_table(data)
    if table:
        return _list_table(table, task, columns)
    if data.is_file():
        return _list_shards(data.parent, [(None, data)], [], (task, *columns))
    skipped: Skipped = []
    children = list(list_folder(data, data, skipped))
    shards = _find_shards(data, children, skipped)
    if shards:
        return _list_shards(data, shards, skipped, (task, *columns))
    return _list_class_folders(data, task, children, skipped)


def find_table(data: Path) -> Path | None:
    """Find the table of a data path: itself, or metadata.csv in a folder; None for other folders and archives."""
    if data.is_dir():
        table = data / "metadata.csv"
        return table if table.is_file() else None
    return None if data.suffix.lower() == tar_shards.SUFFIX else data


def split_of(name: str) -> str | None:
    """The split that a folder or a row of a table is called by: "train", "val" or "test"; None for other names."""
    match = SPLIT_NAME.fullmatch(name.strip())
    return SPLITS[match[1].lower()] if match else None


def find_root(data: Path) -> Path:
    """Descend to the real root from folders that contain it and nothing else, as an unpacked archive often does."""
    for _ in range(MAX_WRAPPERS):
        names, folders = _list_names(data)
        if len(folders) != 1 or set(names) - find_side_files(names) or split_of(folders[0]) or find_table(data):
            break
        inner = data / folders[0]
        names, folders = _list_names(inner)
        images = set(names) - find_side_files(names) - {name for name in names if _is_archive(name)}
        if images or not (folders or find_table(inner) or any(map(_is_archive, names))):
            break  # a class folder
        data = inner
    return data


def _list_names(folder: Path) -> tuple[list[str], list[str]]:
    """The names of files and of folders in a folder, but for hidden and system files; none if it cannot be read."""
    files, folders = list[str](), list[str]()
    try:
        with os.scandir(folder) as children:
            for child in children:
                if not child.name.startswith(".") and child.name.lower() not in IGNORED_NAMES:
                    (folders if child.is_dir() else files).append(child.name)
    except OSError:
        return [], []
    return files, folders


def _is_archive(name: str) -> bool:
    return name.lower().endswith(tar_shards.SUFFIX)


def list_folder(folder: Path, root: Path, skipped: Skipped) -> Iterator[Path]:
    """List a folder in a fixed order; hidden files are added to `skipped`. Links are followed."""
    for _, child in _scan(folder, root, skipped):
        yield folder / child.name


def _scan(folder: Path, root: Path, skipped: Skipped) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """The same with paths below the root; there may be a million, so no `Path` is built."""
    try:
        with os.scandir(folder) as children:
            ordered = sorted(children, key=lambda child: child.name)
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}; check its permissions") from error
    prefix = "" if folder == root else f"{folder.relative_to(root).as_posix()}/"
    for child in ordered:
        path = f"{prefix}{child.name}"
        if child.name.startswith(".") or child.name.lower() in IGNORED_NAMES:
            skipped.append((path, "hidden or system file"))
        else:
            yield path, child


def find_side_files(names: Iterable[str]) -> set[str]:
    """Find the files of a folder that only accompany its images, by their names.

    Those are files with a suffix of text or data, and files that are called like an image but for another suffix, such
    as `1.cr2` or `1.jpg.bin` beside `1.jpg`. Names without a suffix, or with one that says nothing, may be images.
    """
    images, others = set[str](), list[tuple[str, str, str]]()
    for name in names:
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in decode.SUFFIXES:
            images |= {name, stem}
        elif suffix:
            others.append((name, stem, suffix.lower()))
    return {name for name, stem, suffix in others if suffix in SIDE_SUFFIXES or stem in images}


# ---- class folders -------------------------------------------------------------------------------------------------


def _list_class_folders(root: Path, task: str, children: list[Path], skipped: Skipped) -> Listing:
    splits = [child for child in children if split_of(child.name) and child.is_dir()]
    others = [child for child in children if child.is_dir() and child not in splits]
    if splits and others:
        raise DataError(
            f"{root} has both split folders ({splits[0].name}) and others ({others[0].name}); "
            f"use either splits with class folders inside, or class folders only; {SPLIT_HINT}"
        )
    _check_splits(root, splits)
    entries: list[Entry] = []
    remarks = _Remarks()
    for parent in splits or [root]:
        split = split_of(parent.name) if splits else None
        for child in list_folder(parent, root, skipped) if splits else children:
            if child.is_dir():
                remarks.linked_folders += child.is_symlink()
                entries.extend(_list_class(child, root, split, task, skipped, remarks))
            elif child.suffix.lower() not in SIDE_SUFFIXES:
                _check_class_link(child)
                skipped.append((child.relative_to(root).as_posix(), "not in a class folder"))
    if not entries:
        raise DataError(
            f"{root} has no class folder with images; expected {root.name}/<class>/<image> "
            f"or {root.name}/train/<class>/<image>"
        )
    layout = "folders " + ", ".join(sorted({split.name for split in splits})) if splits else "one folder per class"
    return Listing(root, tuple(entries), tuple(skipped), layout, notes=tuple(remarks.notes()))


@dataclass
class _Remarks:
    """What is counted while class folders are listed: links, which are followed wherever they lead, and side files."""

    linked_folders: int = 0
    linked_images: int = 0
    side_files: Counter[str] = field(default_factory=Counter)  # by suffix

    def notes(self) -> Iterator[str]:
        """Yield a line for each kind, if there are any."""
        linked = {"class folder(s)": self.linked_folders, "image(s)": self.linked_images}
        counts = [f"{count} {kind}" for kind, count in linked.items() if count]
        if counts:
            yield f"{' and '.join(counts)} are links, which were followed"
        if self.side_files:
            kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(self.side_files.items()))
            yield f"{self.side_files.total()} file(s) beside the images are no images, and left out: {kinds}"


def _check_splits(root: Path, folders: Iterable[Path]) -> None:
    """Refuse two folders that are one split: which of them is meant?"""
    seen: dict[str | None, str] = {}
    for folder in folders:
        other = seen.setdefault(split_of(folder.name), folder.name)
        if other != folder.name:
            raise DataError(
                f"{root}: {other} and {folder.name} are both {split_of(folder.name)} images; keep one of them, or give "
                f"the other another name; {SPLIT_HINT}"
            )


def _check_class_link(path: Path) -> None:
    """Refuse a link that leads nowhere where a class folder is expected: the class would vanish."""
    if path.is_symlink() and path.suffix.lower() not in decode.SUFFIXES:
        try:
            path.stat()
        except OSError as error:
            reason = decode.describe_failure(path, error)
            raise DataError(f"{path}, where a class folder is expected: {reason}; mend or remove it") from error


def _list_class(
    folder: Path, root: Path, split: str | None, task: str, skipped: Skipped, remarks: _Remarks
) -> Iterator[Entry]:
    labels = {task: unicodedata.normalize("NFC", folder.name)}  # shared by all entries: there may be a million
    children = list(_scan(folder, root, skipped))
    side_files = find_side_files(child.name for _, child in children)
    empty = True
    for path, child in children:
        # only links need another system call; one that is dangling or circular is not a folder
        if os.path.isdir(child.path) if child.is_symlink() else child.is_dir():
            raise DataError(
                f"{path} is a folder inside the class folder {folder.name!r}; "
                "images must be directly in their class folder: <class>/<image>, or <split>/<class>/<image>; "
                f"{SPLIT_HINT}"
            )
        if child.name in side_files:
            remarks.side_files[os.path.splitext(child.name)[1].lower()] += 1
            continue
        remarks.linked_images += child.is_symlink()
        empty = False
        yield Entry(path, split, labels)
    if empty:
        raise DataError(f"class folder {folder.relative_to(root).as_posix()!r} has no images; add some or remove it")


# ---- tar shards ----------------------------------------------------------------------------------------------------


def _find_shards(root: Path, children: list[Path], skipped: Skipped) -> list[tuple[str | None, Path]]:
    """Archives in a folder or its split folders, with their splits; other files among them are skipped."""
    split_folders = [child for child in children if split_of(child.name) and child.is_dir()]
    skipped_in_splits: Skipped = []
    files: list[tuple[str | None, Path]] = [(None, child) for child in children if child not in split_folders]
    for folder in split_folders:
        files += [(split_of(folder.name), child) for child in list_folder(folder, root, skipped_in_splits)]
    shards = [(split, path) for split, path in files if path.suffix.lower() == tar_shards.SUFFIX]
    if not shards:
        return []
    folders = [path for _, path in files if path.is_dir()]
    _check_splits(root, split_folders)
    if folders or {split for split, _ in shards} > {None}:
        other = folders[0] if folders else next(path for split, path in shards if split is None)
        raise DataError(
            f"{root} mixes tar archives with {other.relative_to(root).as_posix()}; "
            "use archives alone, in the folder or in train/ val/ test/"
        )
    skipped += skipped_in_splits
    for _, path in files:
        if path.suffix.lower() not in {*SIDE_SUFFIXES, tar_shards.SUFFIX}:
            skipped.append((path.relative_to(root).as_posix(), "not in an archive"))
    return shards


def _list_shards(
    root: Path, shards: Sequence[tuple[str | None, Path]], skipped: Skipped, tasks: tuple[str, ...]
) -> Listing:
    entries: list[Entry] = []
    shared: dict[tuple[tuple[str, str], ...], dict[str, str]] = {}
    for split, path in shards:
        archive, skipped_members = path.relative_to(root).as_posix(), []
        for sample in tar_shards.read_samples(path, skipped_members):
            labels = tar_shards.parse_labels(sample, tasks)
            if isinstance(labels, str):
                skipped_members.append((sample.name, labels))
            elif labels:
                labels = shared.setdefault(tuple(labels.items()), labels)
                entries.append(Entry(f"{archive}/{sample.name}", split, labels))
        skipped += [(f"{archive}/{name}", reason) for name, reason in skipped_members]
    if not entries:
        first = f"; first: {skipped[0][0]} ({skipped[0][1]})" if skipped else ""
        raise DataError(f"{root}: no image in the archives has a label; expected key.jpg with key.cls{first}")
    splits = ", ".join(sorted({split for split, _ in shards if split}))
    return Listing(root, tuple(entries), tuple(skipped), f"tar shards {splits}".strip())


# ---- tables --------------------------------------------------------------------------------------------------------


def _list_table(path: Path, task: str, columns: tuple[str, ...]) -> Listing:
    table = open_table(path)
    split_column = _find_split_column(table)
    label_columns = _find_label_columns(table, task, split_column)
    others = [name for name in columns if name in table.header]
    entries: list[Entry] = []
    missing: Skipped = []
    seen: set[str] = set()
    shared: dict[tuple[tuple[str, str], ...], dict[str, str]] = {}
    for row in table.rows():
        file = row.found[0] if row.found else row.text
        labels = {task: _read_label(row.values, label_columns), **{name: row.values[name].strip() for name in others}}
        labels = {name: unicodedata.normalize("NFC", label) for name, label in labels.items() if label}
        split = row.values[split_column].strip() if split_column else ""
        problem = None
        if not row.text:
            problem = "the path is blank; fill it in or remove the row"
        elif "\0" in row.text:
            problem = f"the path {row.text!r} contains a NUL byte"
        elif unlabeled := [label for label in labels.values() if label.lower() in MISSING_LABELS]:
            problem = f"the label {unlabeled[0]!r} is not a class name; leave it blank if there is none"
        elif split and not split_of(split):
            problem = f"split {split!r} is unknown; use one of {', '.join(SPLITS)}"
        elif is_outside(row.text) and not row.found:
            problem = f"{row.text!r} is outside the table's folder; use paths below it"
        elif len(row.found) > 1:
            problem = f"{row.text!r} may be {row.found[0]!r} or {row.found[1]!r}; write which"
        elif file in seen:
            problem = f"{file!r} is in the table twice; keep one row"
        if problem:
            raise DataError(f"{path} line {row.number}: {problem}")
        seen.add(file)
        if not row.found:
            missing.append((row.text, f"line {row.number}: no such file"))
        elif labels:
            labels = shared.setdefault(tuple(labels.items()), labels)
            entries.append(Entry(file, split_of(split), labels))
    if not entries:
        first = f" (first: {missing[0][0]!r})" if missing else ""
        raise DataError(
            f"{path}: no row has a label in {_describe_columns(label_columns)} and a file that exists{first}; "
            f"fix the names in column {table.path_column!r} or add labels"
        )
    described = _describe_columns(label_columns)
    layout = f"table, labels from {described}"
    said = () if label_columns in ((task,), ("label",)) else (f"the labels are those of {described}",)
    return Listing(path.parent, tuple(entries), (), layout, tuple(missing), (*table.notes, *said))


def _find_split_column(table: ImageTable) -> str | None:
    """The column of the splits: `split`, or one that is called similarly and holds nothing but names of splits."""
    for column in find_columns(table.header, SPLIT_COLUMNS):
        values = {row[column].strip() for _, row in table.read()} - {""}
        if column.strip().lower() == "split" or (values and all(map(split_of, values))):
            return column
    return None


def _find_label_columns(table: ImageTable, task: str, split_column: str | None) -> tuple[str, ...]:
    """The column of the labels; or one for each class, of which every row has a 1 in one (one-hot)."""
    known = (table.path_column, split_column)
    named = [name for name in (task, "label", *find_columns(table.header, [task.casefold()])) if name not in known]
    for name in named:
        if name in table.header:
            return (name,)
    candidates = [name for name in table.header if name not in known and name.strip() and not UNNAMED.match(name)]
    usual = [name for name in find_columns(table.header, LABEL_COLUMNS) if name in candidates]
    if len(usual) == 1:
        return tuple(usual)
    ids = find_columns(candidates, PATH_COLUMNS)
    candidates = [name for name in candidates if name not in ids] or candidates
    if not candidates:
        raise DataError(f"{table.path} has no column with labels among {', '.join(table.header)}; add one")
    if len(candidates) > 1 and not all(_is_one_hot([row[name] for name in candidates]) for _, row in table.read()):
        raise DataError(
            f"{table.path} has several columns that may hold the labels; choose one with --task: "
            f"{', '.join(candidates)}"
        )
    return tuple(candidates)


def _is_one_hot(values: Sequence[str]) -> bool:
    return sum(map(_is_set, values)) == 1 and all(value.strip() in ("", "0", "0.0", "1", "1.0") for value in values)


def _is_set(value: str) -> bool:
    return value.strip() in ("1", "1.0")


def _read_label(row: Mapping[str, str], columns: tuple[str, ...]) -> str:
    return row[columns[0]].strip() if len(columns) == 1 else next(name for name in columns if _is_set(row[name]))


def _describe_columns(columns: tuple[str, ...]) -> str:
    return f"column {columns[0]!r}" if len(columns) == 1 else f"{len(columns)} columns with a 1 for the class"


def write_manifest(path: Path, root: Path, entries: Sequence[Entry], task: str) -> None:
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
        if escape_surrogates(name) != name:
            raise DataError(f"{escape_surrogates(name)} has a name that is not valid UTF-8; rename the file")
        writer.writerow([name, entry.split or "", entry.labels[task]])
    if path.exists() and path.read_text(encoding="utf-8", errors="replace") != text.getvalue():
        raise DataError(f"{path} already exists with other content; choose another file")
    write_output(path, text.getvalue())
