"""Files written atomically, and digests of them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from taskgraft.errors import InputError


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Give a path to write to; it is flushed and renamed over `path` when the block ends well, else removed.

    A reader sees the old file or the new one, never a half.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield aside
        os.chmod(aside, _usual_mode(aside))
        flush(aside)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    flush(path.parent)


def _usual_mode(beside: Path) -> int:
    """What the user's umask gives a new file; safetensors writes files that nobody else may read."""
    probe = beside.with_name(f"{beside.name}.mode")
    handle = os.open(probe, os.O_CREAT | os.O_WRONLY, 0o666)
    try:
        return os.fstat(handle).st_mode & 0o777
    finally:
        os.close(handle)
        probe.unlink()


def flush(path: Path) -> None:
    """Force a file or folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically; what is no text in it, such as bytes of a file's name, is escaped."""
    with atomic(path) as aside:
        aside.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_asked(path: Path, text: str) -> None:
    """Write a text file where the user asked for it; raises TaskgraftError where that cannot be."""
    try:
        write_text(path, text)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}; choose another place") from error


def shown(name: str) -> str:
    """A file name as text that can be written: bytes that are no UTF-8 are escaped."""
    return name.encode("utf-8", "backslashreplace").decode()


def write_json(path: Path, value: object) -> None:
    """Write JSON atomically, readable by people."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(parts: Iterable[str]) -> str:
    """SHA-256 over a sequence of strings, order included."""
    total = hashlib.sha256()
    for part in parts:
        total.update(part.encode("utf-8", "surrogateescape") + b"\n")
    return total.hexdigest()
