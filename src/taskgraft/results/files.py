"""Files written atomically, and digests of them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from taskgraft.errors import InputError


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Replace a file atomically: a reader sees the old file or the new one, never part of it.

    Args:
        path: The file.

    Yields:
        A path to write to. It is flushed and renamed to `path` when the block ends without an error, else deleted.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        os.chmod(temporary, _default_mode(temporary))
        flush(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    flush(path.parent)


def _default_mode(path: Path) -> int:
    """What the user's umask gives a new file; safetensors writes files that nobody else may read."""
    probe = path.with_name(f"{path.name}.mode")
    handle = os.open(probe, os.O_CREAT | os.O_WRONLY, 0o666)
    try:
        return os.fstat(handle).st_mode & 0o777
    finally:
        os.close(handle)
        probe.unlink()


def require_absent(folder: Path) -> None:
    """Check that a folder does not exist, or is empty.

    Raises:
        InputError: It has files, or is one.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} already exists; choose another folder or remove it")


@contextmanager
def temporary_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder to write into, next to `folder`; removed at the end, unless `publish_folder` has renamed it.

    Raises:
        InputError: It cannot be created.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
    except OSError as error:
        raise InputError(
            f"cannot write {folder}: {error.strerror}; choose another folder or fix its permissions"
        ) from error
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def publish_folder(temporary: Path, folder: Path) -> None:
    """Rename a finished folder to where it belongs, which must be absent or empty."""
    if folder.is_dir():
        folder.rmdir()  # fails if it is no longer empty
    os.replace(temporary, folder)


def flush(path: Path) -> None:
    """Force a file or folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically; bytes of file names that are not UTF-8 are escaped."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_output(path: Path, text: str) -> None:
    """Write a text file to a path that the user chose.

    Raises:
        InputError: It cannot be written there.
    """
    try:
        write_text(path, text)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}; choose another path") from error


def escape_surrogates(name: str) -> str:
    """Return a file name as text that can be written: bytes that are not UTF-8 are escaped."""
    return name.encode("utf-8", "backslashreplace").decode()


def write_json(path: Path, value: object) -> None:
    """Write JSON atomically, indented."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(strings: Iterable[str]) -> str:
    """Return the SHA-256 of a sequence of strings, order included."""
    sha256 = hashlib.sha256()
    for string in strings:
        sha256.update(string.encode("utf-8", "surrogateescape") + b"\n")
    return sha256.hexdigest()
