"""A run's folder: one writer, its settings, its metrics, and what a second start of the same command finds."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from taskgraft import distributed
from taskgraft.errors import InputError, SetupError, TaskgraftError
from taskgraft.results.files import flush, shown, write_json, write_text
from taskgraft.results.record import StepMetrics

OWN = {"run.json", ".lock", "metrics.jsonl", "state", "log.txt", "command.txt", "tensorboard", "search"}
LEFT = re.compile(r"\.(.+)\.\d+(\.mode)?")  # names that `record.atomic` and `state.save` write to before they rename
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.ESTALE}


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a run folder alone; raises TaskgraftError naming who holds it. The lock dies with its process.

    Of several processes of one run the chief holds it for all.
    """
    with ExitStack() as stack:
        distributed.broadcast(lambda: stack.enter_context(_alone(folder)))
        yield


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made: {error.strerror}; choose another OUT") from error
    lock, note = FileLock(folder / ".lock", thread_local=False), folder / ".holder"
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise _busy(folder) from error
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror}; choose another OUT") from error
    try:
        note.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        _sweep(folder)
        yield
    except (OSError, SafetensorError) as error:
        raise _unwritable(folder, error) from error
    finally:
        with suppress(OSError):
            note.unlink(missing_ok=True)
        lock.release()


def _busy(folder: Path) -> TaskgraftError:
    note = folder / ".holder"
    holder = note.read_text() if note.exists() else "another process"
    return InputError(f"{folder} is being written by {holder}; wait for it, or choose another OUT")


def _is_held(folder: Path) -> bool:
    lock = FileLock(folder / ".lock", thread_local=False)
    try:
        with lock.acquire(timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # a folder that only can be read is written by nobody
        return False


def _sweep(folder: Path) -> None:
    """Remove what processes that were killed left beside the files they were writing; the lock says that none lives."""
    for left in folder.rglob(".*"):
        if LEFT.fullmatch(left.name):
            shutil.rmtree(left) if left.is_dir() else left.unlink()


def _unwritable(folder: Path, error: OSError | SafetensorError) -> Exception:
    """The TaskgraftError of a disk that is full, failing or read-only; any other error as it is."""
    told = error.errno in DISK if isinstance(error, OSError) else "os error" in str(error)
    if not told:
        return error
    reason = error.strerror if isinstance(error, OSError) else str(error)
    try:
        free = f"{shutil.disk_usage(folder).free / 2**20:.0f} MiB are free there"
    except OSError:
        free = "its disk does not answer"
    return SetupError(
        f"{folder} cannot be written: {reason}; {free}; what was saved before is whole, make room and the same "
        "train or extend with --resume goes on, any other command as it stands",
    )  # fmt: skip


def suited(folder: Path, sources: Iterable[Path]) -> None:
    """Raise TaskgraftError for an OUT that cannot be: among the images that are read, too long, or no text.

    Tables may lie beside OUT: only what they list is read.
    """
    if shown(str(folder)) != str(folder):
        raise InputError(f"{shown(str(folder))} is no UTF-8; choose another OUT")
    try:
        folder.exists()
    except OSError as error:
        raise InputError(f"{str(folder)[:80]}… cannot be used: {error.strerror}; choose another OUT") from error
    place = Path(os.path.realpath(folder))
    for source in sources:
        if source.is_dir() and place.is_relative_to(os.path.realpath(source)):
            raise InputError(f"{folder} lies in {source}, whose images are read; choose an OUT elsewhere")


def examine(
    folder: Path, settings: Mapping[str, Any], resume: bool, pictures: Callable[[], str] = lambda: "other images"
) -> str:
    """What a folder holds: "new", "begun" (go on) or "done".

    Raises TaskgraftError for foreign files, for a begun run without `resume`, telling who is at it if somebody is, and for a
    run with other settings, naming each difference; `images` says how those of the new task differ. Nothing is
    written.
    """
    file = folder / "run.json"
    if not file.exists():
        names = {item.name for item in folder.iterdir()} if folder.is_dir() else set()
        strange = sorted(name for name in names - OWN - {".holder"} if not _begun_file(name))
        if strange:
            raise InputError(
                f"{folder} already holds other files ({', '.join(strange[:3])}); choose an empty or new OUT"
            )
        return "new"
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        differing = differences(stored["settings"], json.loads(json.dumps(settings)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file} is damaged or not of a taskgraft run; choose an empty or new OUT") from error
    if differing:
        news = ("data was", "data.new was")
        told = [f"{line} ({pictures()})" if line.startswith(news) else line for line in differing[:6]]
        raise InputError(f"{folder} holds another run: {', '.join(told)}; choose another OUT, or repeat its settings")
    if stored.get("done"):
        return "done"
    if not resume:
        if _is_held(folder):
            raise _busy(folder)
        raise InputError(f"{folder} holds this run, unfinished: add --resume to go on from its last checkpoint")
    return "begun"


def _begun_file(name: str) -> bool:
    """Whether this is one of a run's own files in the making, left by a start that was killed."""
    left = LEFT.fullmatch(name)
    return left is not None and left[1] in OWN


def differences(stored: Mapping[str, Any], expected: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Each setting that differs: 'name was X, is Y'."""
    found = []
    for key in sorted(stored.keys() | expected.keys()):
        before, after = stored.get(key), expected.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            found += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            found.append(f"{prefix}{key} was {_brief(before)}, is {_brief(after)}")
    return found


def open_run(
    folder: Path,
    settings: Mapping[str, Any],
    resolved: Mapping[str, Any],
    command: str,
    place: Mapping[str, str] | None = None,
) -> None:
    """Write run.json (what was asked, what it became, with which versions and where) and command.txt."""
    write_json(folder / "run.json", {"settings": settings, "resolved": resolved, "place": place or {}, "done": False})
    write_text(folder / "command.txt", command + "\n")


def withdraw(folder: Path) -> None:
    """Take back what a run wrote when it was refused before its first checkpoint; its folder is free again."""
    if not any((folder / "state").glob("step-*")) and not (folder / "config.json").exists():
        for name in ("run.json", "command.txt", "metrics.jsonl", "split.csv", "excluded.csv"):
            (folder / name).unlink(missing_ok=True)


def resolved(folder: Path) -> dict[str, Any]:
    """What the settings became when the run was first started."""
    return json.loads((folder / "run.json").read_text())["resolved"]


def resolve_anew(folder: Path, changes: Mapping[str, Any]) -> None:
    """Keep what the settings became later, for a resume."""
    stored = json.loads((folder / "run.json").read_text())
    write_json(folder / "run.json", {**stored, "resolved": {**stored["resolved"], **changes}})


def moved(folder: Path, place: Mapping[str, str]) -> list[str]:
    """What differs from where the run was begun: 'torch was 2.13.0, is 2.14.1'; kept for `moves`."""
    stored = json.loads((folder / "run.json").read_text())
    found = differences(stored.get("place") or place, place)
    kept = sorted({*stored.get("moves", ()), *found})
    if found and kept != stored.get("moves"):
        write_json(folder / "run.json", {**stored, "moves": kept})
    return found


def moves(folder: Path) -> list[str]:
    """All that `moved` has found in the life of a run."""
    return json.loads((folder / "run.json").read_text()).get("moves", [])


def close_run(folder: Path) -> None:
    """Mark the run as finished."""
    stored = json.loads((folder / "run.json").read_text())
    write_json(folder / "run.json", {**stored, "done": True})


def append(folder: Path, line: StepMetrics) -> None:
    """Add a line to metrics.jsonl."""
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(line.model_dump_json(exclude_defaults=True) + "\n")


def history(folder: Path) -> list[StepMetrics]:
    """The lines of metrics.jsonl; a half-written last line is left out."""
    try:
        text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    return [StepMetrics.model_validate_json(line) for line in text.split("\n")[:-1] if line]


def rewind(folder: Path, step: int) -> list[StepMetrics]:
    """Drop the lines after `step`: they will be written again, equal."""
    kept = [line for line in history(folder) if line.step <= step]
    write_text(folder / "metrics.jsonl", "".join(line.model_dump_json(exclude_defaults=True) + "\n" for line in kept))
    flush(folder)
    return kept


def _brief(value: object) -> str:
    """A value as a person compares it; of a digest its beginning."""
    text = repr(value)
    return f"{text[:13]}…" if isinstance(value, str) and len(value) == 64 else text
