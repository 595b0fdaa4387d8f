"""Class names: read from what programs store, matched with each other, merged by a pattern. No image is touched."""

from __future__ import annotations

import ast
import csv
import difflib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from taskgraft.data.layouts import Entry
from taskgraft.errors import DataError, InputError, first_line

# Columns of a table of class names, compared without case, spaces, underscores and hyphens.
INDEX_COLUMNS = ("index", "idx", "id", "classid", "classindex", "classidx", "labelid", "labelindex", "labelidx")
NAME_COLUMNS = ("name", "class", "classname", "label", "labelname", "category")
KEYS = ("id2label", "label_names", "class_to_idx", "class_names", "classes", "names", "labels")  # of files with more


class Match(NamedTuple):
    """A name and the known name that it probably stands for; a variant differs in writing alone, else in spelling."""

    name: str
    suggestion: str
    is_variant: bool


class MergedClasses(NamedTuple):
    """The remaining entries, the new name of each class (None = dropped), and the image counts of dropped classes."""

    entries: tuple[Entry, ...]
    renamed: dict[str, str | None]
    dropped: dict[str, int]


def parse_class_names(value: object) -> tuple[str, ...]:
    """Return class names in index order from what programs store: a list, {index: name} or {name: index}.

    Args:
        value: as read from JSON or a checkpoint; the indices may be texts, as JSON has them.

    Raises:
        ValueError: it is none of these, indices are missing, or a name is there twice.
    """
    if isinstance(value, Mapping) and value:
        if all(_is_index(key) for key in value) and not all(_is_index(name) for name in value.values()):
            pairs = [(int(key), name) for key, name in value.items()]
        elif all(_is_index(index) for index in value.values()):
            pairs = [(int(index), name) for name, index in value.items()]
        else:
            raise ValueError("it is neither {index: name} nor {name: index}")
        if sorted(index for index, _ in pairs) != list(range(len(pairs))):
            raise ValueError(f"its indices are not 0 to {len(pairs) - 1}, each once")
        value = [name for _, name in sorted(pairs, key=lambda pair: pair[0])]
    if not isinstance(value, list | tuple) or not value:
        raise ValueError("it is not a list of names, {index: name} or {name: index}")
    if not all(isinstance(name, str | int) and str(name).strip() for name in value):
        raise ValueError("not all of its names are texts")
    names = tuple(str(name).strip() for name in value)
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"it lists {twice[0]!r} twice; class names must differ")
    return names


def read_labels(file: Path) -> tuple[tuple[str, ...], str]:
    """Read class names in index order from a file of --labels.

    A text file has one name per line, lines such as '0: cat', or a table with a header such as 'id,name'. JSON, YAML or
    what Python prints has a list, {index: name} or {name: index}, or one of them below a key such as id2label or names.

    Returns:
        The names, and in which form they were, for a note; "" for plain lines.

    Raises:
        InputError: the file cannot be read, or it is not clear what its names are.
    """
    try:
        text = file.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read --labels {file}: {error}; give a text file of class names") from error
    try:
        suffix = file.suffix.lower()
        if suffix in (".json", ".yaml", ".yml") or text.startswith(("{", "[")):
            value, form = _find_names(_parse_yaml(text) if suffix in (".yaml", ".yml") else _parse_structure(text))
        else:
            value, form = _parse_lines([line.strip() for line in text.splitlines() if line.strip()])
        return parse_class_names(value), f"class names from --labels {file.name}{form}" if form else ""
    except ValueError as error:
        raise InputError(f"--labels {file}: {error}; give one name per line, in index order") from error


def _parse_structure(text: str) -> object:
    """Parse JSON, or a list or dictionary as Python prints it."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise ValueError(f"it is not valid JSON ({first_line(error, 80)})") from error


def _parse_yaml(text: str) -> object:
    import yaml

    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"it is not valid YAML ({first_line(error, 80)})") from error


def _find_names(value: object) -> tuple[object, str]:
    """Find the names in a file's contents: below a known key, or all of it; and say which."""
    if isinstance(value, Mapping):
        for key in KEYS:
            if isinstance(value.get(key), list | Mapping):
                return value[key], f", its entry {key!r}"
    return value, ", read as a list" if isinstance(value, list) else ", in the order of its indices"


def _parse_lines(lines: list[str]) -> tuple[object, str]:
    """Tell lines with an index, such as '0: cat' or 'cat,0', from plain names."""
    if not lines:
        raise ValueError("it is empty")
    form = ", in the order of its indices"
    if table := _parse_table(lines):
        return table
    index_first = [re.fullmatch(r"([0-9]{1,9})\s*[:;,=\t]\s*(.+)", line) for line in lines]
    matches = [match for match in index_first if match]
    if len(matches) == len(lines):
        indices = [int(match[1]) for match in matches]
        if len(set(indices)) < len(indices):
            raise ValueError("an index is there twice")
        return dict(zip(indices, (match[2] for match in matches), strict=True)), form
    if 2 * len(matches) > len(lines) > 2:
        other = next(line for line, match in zip(lines, index_first, strict=True) if not match)
        raise ValueError(f"most lines begin with an index, but not all: {other[:60]!r}")
    for pattern, index, name in ((r"([0-9]{1,9})\s+(\w.*)", 1, 2), (r"(.+?)\s*[:;,=\t]\s*([0-9]{1,9})", 2, 1)):
        found = [match for match in (re.fullmatch(pattern, line) for line in lines) if match]
        numbered = {int(match[index]): match[name] for match in found}
        if len(lines) > 1 and sorted(numbered) == list(range(len(lines))):  # not years or other numbers
            return numbered, form
    if all(line.startswith("- ") for line in lines):
        return [line.removeprefix("- ") for line in lines], ", read as a list"
    return lines, ""


def _parse_table(lines: list[str]) -> tuple[object, str] | None:
    """Read a table whose header names one column of indices and one of names; None where there is no such header."""
    for separator in (",", ";", "\t"):
        try:
            header, *rows = csv.reader(lines, delimiter=separator, skipinitialspace=True)
        except csv.Error:  # a line longer than any table's
            continue
        plain = [re.sub(r"[\s_-]", "", column).casefold() for column in header]
        indices, names = (
            [i for i, column in enumerate(plain) if column in known] for known in (INDEX_COLUMNS, NAME_COLUMNS)
        )
        if len(indices) != 1 or len(names) != 1 or not rows:
            continue
        index, name = indices[0], names[0]
        bad = next((row for row in rows if len(row) <= max(index, name) or not _is_index(row[index])), None)
        if bad is not None:
            raise ValueError(f"its column {header[index]!r} has no index in the row {separator.join(bad)[:60]!r}")
        if len({row[index] for row in rows}) < len(rows):
            raise ValueError("an index is there twice")
        return {row[index]: row[name] for row in rows}, f", its columns {header[index]!r} and {header[name]!r}"
    return None


def _is_index(value: object) -> bool:
    return (isinstance(value, int) and value >= 0) or (isinstance(value, str) and value.isascii() and value.isdigit())


def normalize_name(name: str) -> str:
    """Remove case, invisible characters, kinds of separators, a plural s, and the .0 of a number."""
    text = unicodedata.normalize("NFKC", name).casefold()
    text = "".join(char for char in text if char.isspace() or unicodedata.category(char) not in ("Cc", "Cf"))
    text = re.sub(r"[\s_\-]+", " ", text).strip()
    text = re.sub(r"^(-?\d+)\.0+$", r"\1", text)
    return re.sub(r"(?<=[^\Ws]{3})s$", "", text)


def group_variants(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Group names that differ in writing alone; groups of two or more."""
    groups: dict[str, list[str]] = {}
    for name in sorted(set(names)):
        groups.setdefault(normalize_name(name), []).append(name)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def find_matches(names: Iterable[str], vocabulary: Sequence[str]) -> list[Match]:
    """Find, for names that are not in the vocabulary, the name that each probably stands for; no match, no entry."""
    normalized = {normalize_name(name): name for name in vocabulary}
    matches = []
    for name in sorted(set(names) - set(vocabulary)):
        plain = normalize_name(name)
        if plain in normalized:
            matches.append(Match(name, normalized[plain], True))
            continue
        close = difflib.get_close_matches(plain, list(normalized), n=1, cutoff=0.85)
        # models and years differ by a digit, typos by a letter
        if close and re.findall(r"\d+", close[0]) == re.findall(r"\d+", name):
            matches.append(Match(name, normalized[close[0]], False))
    return matches


def merge_classes(entries: Sequence[Entry], task: str, pattern: str | None, min_images: int) -> MergedClasses:
    r"""Rename each class to the pattern's groups joined by '_', then drop classes under `min_images`.

    A pattern such as `^([^_]+)_` keeps the make of make_model_year. Named or plain groups; without a group the
    whole match is the name. Training images are counted where there is a split, all images otherwise.

    Raises:
        DataError: the pattern is invalid or matches no class, or fewer than two classes remain.
    """
    names = sorted({entry.labels[task] for entry in entries})
    merged = {name: _apply_pattern(name, pattern) for name in names} if pattern else {name: name for name in names}
    if not any(merged.values()):
        raise DataError(
            f"--group {pattern!r} matches none of the {len(names)} class names; they look like {names[0]!r}"
        )
    counts = Counter(merged[entry.labels[task]] for entry in entries if entry.split in (None, "train"))
    dropped = {name: counts[name] for name in set(merged.values()) if name and counts[name] < min_images}
    renamed = {name: new if new and new not in dropped else None for name, new in merged.items()}
    remaining = {new for new in renamed.values() if new}
    if len(remaining) < 2 and (pattern or min_images):
        raise DataError(f"--group and --min-images leave {len(remaining)} of {len(names)} classes, but two are needed")
    relabeled = tuple(
        entry._replace(labels={**entry.labels, task: new}) for entry in entries if (new := renamed[entry.labels[task]])
    )
    return MergedClasses(relabeled, renamed, dropped)


def _apply_pattern(name: str, pattern: str) -> str | None:
    try:
        match = re.search(pattern, name)
    except re.error as error:
        raise DataError(f"--group {pattern!r} is not a valid regular expression: {error}") from error
    if not match:
        return None
    return "_".join(group for group in match.groups() if group) if match.groups() else match.group(0)
