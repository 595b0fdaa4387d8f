"""Tables of images: CSV as Excel, Kaggle and Windows write it, TSV and Parquet; which file each row means.

What can be read in one way only is read so and said; the rest is refused with what was found.
"""

from __future__ import annotations

import csv
import os
import posixpath
import re
import stat
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TextIO

from taskgraft.data import decode, tar_shards
from taskgraft.errors import DataError, first_line, require

TABLE_SUFFIXES = (".csv", ".tsv", ".parquet")
PATH_COLUMNS = (
    "path", "file_name", "filename", "filepath", "file_path", "file", "image_path", "image_name", "image_file", "image",
    "img_path", "img", "image_id", "imageid", "img_id", "id", "name",
)  # fmt: skip
USUAL_PATH_COLUMNS = PATH_COLUMNS[:3]  # of which nothing has to be said
LABEL_COLUMNS = ("label", "labels", "class", "class_name", "classname", "target", "category")
SPLIT_COLUMNS = ("split", "subset", "partition", "set", "usage")
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
SAMPLE = 1000  # rows that are looked at for what a column holds and where its files are
EXCEL_HINT = re.compile(r'"?sep=(.)"?')  # a first line that Excel writes and reads
WINDOWS_ROOT = re.compile(r"[A-Za-z]:[\\/]|\\\\")


class TableRow(NamedTuple):
    """A row: its line, the file's name as written, the files that it may mean (relative paths), and all values."""

    number: int
    text: str
    found: tuple[str, ...]
    values: Mapping[str, str]


class ImageTable(NamedTuple):
    """A table whose columns are understood.

    Attributes:
        path: the table.
        header: names of its columns.
        path_column: the column that names the files.
        finder: finds the file of a row.
        notes: what was assumed.
        named: the names in `header` if the table has none of its own.
    """

    path: Path
    header: tuple[str, ...]
    path_column: str
    finder: _Finder
    notes: tuple[str, ...]
    named: tuple[str, ...] = ()

    def read(self) -> Iterator[tuple[int, dict[str, str]]]:
        """Yield (line number, row)."""
        return read_table(self.path, self.named)

    def rows(self) -> Iterator[TableRow]:
        """Yield every row, with its file."""
        for number, row in self.read():
            text = row[self.path_column].strip()
            yield TableRow(number, text, tuple(self.finder.find(text)), row)


def open_table(path: Path) -> ImageTable:
    """Find out which column names the files of a table, and where they are.

    Raises:
        DataError: the file is not a table, or no column names files.
        MissingDependency: Parquet, but no pyarrow.
    """
    finder = _Finder(path.parent)
    without = _name_columns(path, finder)
    rows = [row for _, row in islice(read_table(path, without), SAMPLE)]
    header = tuple(rows[0]) if rows else read_header(path)
    named = find_columns(header, PATH_COLUMNS)
    columns = _columns_of_files(finder, rows, named or header)
    if not columns and finder.enter_folders():
        columns = _columns_of_files(finder, rows, named or header)
        if not columns:
            finder.folders = [""]
    if not named and len(columns) != 1:
        first = f" (first row: {', '.join(rows[0].values())})" if rows else ""
        raise DataError(
            f"{path}: no column 'path' among {', '.join(header) or 'none at all'}{first}, nor one whose files exist; "
            "add it"
        )
    column = columns[0] if columns else named[0]
    notes = [f"the table has no header: its columns are taken as {' and '.join(without)}"] if without else []
    if column not in USUAL_PATH_COLUMNS:
        notes.append(f"the files are those of column {column!r}")
    for text in (row[column].strip() for row in rows):
        found = finder.find(text)
        if found and found != [text]:
            notes.append(f"file names were completed, such as {text!r} to {found[0]!r}")
            break
    return ImageTable(path, header, column, finder, tuple(notes), without)


def _name_columns(path: Path, finder: _Finder) -> tuple[str, ...]:
    """Name the columns of a table without a header: its first row names an image; () where there is a header.

    Raises:
        DataError: it has no header, and not two columns of which one names images.
    """
    first = read_header(path)
    if not any(os.path.splitext(cell)[1].lower() in decode.SUFFIXES for cell in first):
        return ()
    files = [i for i, cell in enumerate(first) if finder.find(cell.strip())]
    if not files and finder.enter_folders():
        files = [i for i, cell in enumerate(first) if finder.find(cell.strip())]
        finder.folders = [""]
    if not files:
        return ()
    if len(first) != 2 or len(files) != 1:
        raise DataError(
            f"{path}: its first row names an image ({first[files[0]]}) where the header is expected; add one, such as "
            "path,label"
        )
    return ("path", "label") if files == [0] else ("label", "path")


def find_columns(header: Iterable[str], names: Sequence[str]) -> list[str]:
    """Find the columns that are called by one of some names, in the order of the names; case and spaces are equal."""
    plain = defaultdict[str, list[str]](list)
    for column in header:
        plain[re.sub(r"[\s_-]+", "_", column.strip().casefold())].append(column)
    return [column for name in names for column in plain[name]]


def is_outside(path: str) -> bool:
    """Whether a relative path, as it is written, is of another folder; links are followed, being the user's own."""
    first = posixpath.normpath(path.replace("\\", "/")).split("/")[0]
    return first in ("", "..") or os.path.isabs(path) or bool(WINDOWS_ROOT.match(path))


class _Finder:
    """Finds the files that a table names in the table's folder, or in one folder below it that nobody wrote down.

    A backslash is taken for a slash where there is no such file; a name without the suffix of an image is completed.
    """

    def __init__(self, root: Path) -> None:
        self.root = os.path.abspath(root)
        self.folders = [""]
        self._stems: dict[str, dict[str, list[str]]] = {}

    def enter_folders(self) -> bool:
        """Look into the folders beside the table from now on; returns whether there are any."""
        with os.scandir(self.root) as children:
            names = sorted(child.name for child in children if child.is_dir() and not child.name.startswith("."))
        self.folders = names or self.folders
        return bool(names)

    def find(self, text: str) -> list[str]:
        """Find all files that a name may mean, as paths relative to the table's folder with forward slashes."""
        if "\0" in text:
            return []
        if os.path.isabs(text) and (whole := os.path.normpath(text)).startswith(os.path.join(self.root, "")):
            text = os.path.relpath(whole, self.root).replace(os.sep, "/")
        if not text or is_outside(text):
            return []
        found = []
        for folder in self.folders:
            path = posixpath.join(folder, text)
            turned = path.replace("\\", "/")
            if self._exists(path):
                found.append(path)
            elif turned != path and self._exists(turned):
                found.append(turned)
            elif os.path.splitext(turned)[1].lower() not in decode.SUFFIXES:
                head, name = posixpath.split(turned)
                found += [posixpath.join(head, whole) for whole in self._names_by_stem(head).get(name, ())]
        return found

    def _exists(self, path: str) -> bool:
        """Whether there is such a file or member of an archive; a broken link is one, refused when it is read."""
        whole = os.path.join(self.root, path)
        try:
            mode = os.lstat(whole).st_mode
        except OSError:
            return tar_shards.SUFFIX in path.lower() and tar_shards.find_archive(Path(whole)) is not None
        return not stat.S_ISDIR(mode) and not (stat.S_ISLNK(mode) and os.path.isdir(whole))

    def _names_by_stem(self, folder: str) -> dict[str, list[str]]:
        if folder not in self._stems:
            stems = defaultdict[str, list[str]](list)
            try:
                names = sorted(os.listdir(os.path.join(self.root, folder)))
            except OSError:
                names = []
            for name in names:
                stem, suffix = os.path.splitext(name)
                if suffix.lower() in decode.SUFFIXES:
                    stems[stem].append(name)
            self._stems[folder] = dict(stems)
        return self._stems[folder]


def _columns_of_files(finder: _Finder, rows: Sequence[Mapping[str, str]], columns: Iterable[str]) -> list[str]:
    """The columns in which some row names a file that exists."""
    return [column for column in columns if any(finder.find(row[column].strip()) for row in rows)]


def read_table(path: Path, names: Sequence[str] = ()) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line number, row as text) of a CSV, TSV or Parquet table; rows without any value are left out.

    Args:
        path: the table.
        names: names of the columns, where its first line has none.

    Raises:
        DataError: the file is not a table, or damaged.
        MissingDependency: Parquet, but no pyarrow.
    """
    if path.suffix.lower() == ".parquet":
        yield from _read_parquet(path)
        return
    with _refuse_damaged(path), _open_text(path) as file:
        delimiter, start = _find_delimiter(path, file)
        reader = csv.DictReader(file, names or None, delimiter=delimiter, strict=True)
        for row in reader:
            if None in row or None in row.values():
                raise DataError(
                    f"{path} line {start + reader.line_num}: the number of fields differs from the header's; fix "
                    "that line"
                )
            if any(value.strip() for value in row.values()):
                yield start + reader.line_num, row


@contextmanager
def _refuse_damaged(path: Path) -> Iterator[None]:
    try:
        yield
    except (UnicodeError, csv.Error) as error:
        raise DataError(f"{path}: not a readable UTF-8 table: {error}; save it as CSV in UTF-8") from error


def read_header(path: Path) -> tuple[str, ...]:
    """Read the names of the columns of a text table that has no rows; none of a Parquet table."""
    if path.suffix.lower() == ".parquet":
        return ()
    with _refuse_damaged(path), _open_text(path) as file:
        delimiter, _ = _find_delimiter(path, file)
        return tuple(next(csv.reader(file, delimiter=delimiter), ()))


def _open_text(path: Path) -> TextIO:
    suffix = path.suffix.lower()
    if suffix not in TABLE_SUFFIXES:
        hint = "; save it as CSV (UTF-8)" if suffix in (".xlsx", ".xls", ".ods") else ""
        raise DataError(f"{path} is not a table; use a folder, or a .csv, .tsv or .parquet file{hint}")
    with path.open("rb") as file:
        is_utf16 = file.read(2) in (b"\xff\xfe", b"\xfe\xff")  # what Excel calls Unicode text
    return path.open(encoding="utf-16" if is_utf16 else "utf-8-sig", newline="")


def _find_delimiter(path: Path, file: TextIO) -> tuple[str, int]:
    """The delimiter under which the header says most, and the lines before it; the file stands at the header."""
    usual = "\t" if path.suffix.lower() == ".tsv" else ","
    hint = EXCEL_HINT.fullmatch(file.readline().strip())
    if hint:
        return hint[1], 1
    best, delimiter = (False, 1), usual
    for candidate in (usual, *DELIMITERS):
        file.seek(0)
        try:
            header = next(csv.reader(file, delimiter=candidate, strict=True), [])
        except csv.Error:
            continue
        score = bool(find_columns(header, PATH_COLUMNS)), len(header)
        if score > best:
            best, delimiter = score, candidate
    file.seek(0)
    return delimiter, 0


def _read_parquet(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    require("parquet", "pyarrow", what="a Parquet table")
    import pyarrow.parquet as parquet  # pyright: ignore[reportMissingImports] - an extra

    try:
        rows = parquet.read_table(path).to_pylist()
    except (OSError, ValueError) as error:  # pyarrow's errors are of these
        raise DataError(f"{path}: not a readable Parquet table: {first_line(error)}; write it again") from error
    for number, row in enumerate(rows, start=1):
        yield number, {name: "" if value is None else str(value) for name, value in row.items()}
