"""A run's folder: one writer, its settings and metrics, and what a second start of the same command finds in it."""

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
from typing import Any, Literal

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from taskgraft import distributed
from taskgraft.errors import InputError, SetupError
from taskgraft.results.files import escape_surrogates, flush, write_json, write_text
from taskgraft.results.record import StepMetrics

# Files of a run that has not begun, or that others write; a new OUT may contain nothing else.
EXPECTED = {
    "run.json", ".lock", ".holder", "metrics.jsonl", "state", "log.txt", "command.txt", "tensorboard", "search",
    "teacher",
}  # fmt: skip
LEFTOVER = re.compile(r"\.(.+)\.\d+(\.mode)?")  # what `files.atomic` and `checkpoints.save` write before they rename
DISK_ERRORS = {
    errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.ESTALE,
}  # fmt: skip


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Lock a run folder, creating it; the lock ends with its process. Of several processes of a run, one locks for all.

    Raises:
        InputError: It cannot be created or written, or another process is writing it.
        SetupError: The disk is full, read-only or failing while the lock is held.
    """
    with ExitStack() as stack:
        distributed.broadcast(lambda: stack.enter_context(_lock_locally(folder)))
        yield


@contextmanager
def _lock_locally(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be created: {error.strerror}; choose another OUT") from error
    file_lock, holder = FileLock(folder / ".lock", thread_local=False), folder / ".holder"
    try:
        file_lock.acquire(timeout=0)
    except Timeout as error:
        raise _busy_error(folder) from error
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror}; choose another OUT") from error
    try:
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        for leftover in folder.rglob(".*"):  # of killed processes; under the lock none is alive
            if LEFTOVER.fullmatch(leftover.name):
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        yield
    except (OSError, SafetensorError) as error:
        raise _explain_disk_error(folder, error) from error
    finally:
        with suppress(OSError):
            holder.unlink(missing_ok=True)
        file_lock.release()


def _busy_error(folder: Path) -> InputError:
    file = folder / ".holder"
    holder = file.read_text() if file.exists() else "another process"
    return InputError(f"{folder} is being written by {holder}; wait for it, or choose another OUT")


def _is_locked(folder: Path) -> bool:
    try:
        with FileLock(folder / ".lock", thread_local=False).acquire(timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # nobody writes a read-only folder
        return False


def _explain_disk_error(folder: Path, error: OSError | SafetensorError) -> Exception:
    """Return a SetupError for a disk that is full, failing or read-only; any other error as it is."""
    if not (error.errno in DISK_ERRORS if isinstance(error, OSError) else "os error" in str(error)):
        return error
    reason = error.strerror if isinstance(error, OSError) else str(error)
    try:
        free = f"{shutil.disk_usage(folder).free / 2**20:.0f} MiB are free there"
    except OSError:
        free = "its disk does not respond"
    return SetupError(
        f"{folder} cannot be written: {reason}; {free}; earlier checkpoints are intact: make room and rerun the "
        "command (train and extend with --resume)"
    )


def check_location(folder: Path, sources: Iterable[Path], models: Iterable[str] = ()) -> None:
    """Check that an OUT can be used. Tables may be in the folder that OUT is in: only what they list is read.

    Args:
        folder: The run folder, which need not exist.
        sources: Files and folders that images are read from.
        models: Models that the run begins with, as they were given.

    Raises:
        InputError: The path is too long or not UTF-8, is a model that is read, or is inside a folder of images.
    """
    if escape_surrogates(str(folder)) != str(folder):
        raise InputError(f"{escape_surrogates(str(folder))} is not valid UTF-8; choose another OUT")
    try:
        folder.exists()
    except OSError as error:
        raise InputError(f"{str(folder)[:80]}… cannot be used: {error.strerror}; choose another OUT") from error
    real_path = Path(os.path.realpath(folder))
    if any(os.path.realpath(model) == str(real_path) for model in models):
        raise InputError(f"{folder} is the model that is read; choose another OUT")
    for source in sources:
        if source.is_dir() and real_path.is_relative_to(os.path.realpath(source)):
            raise InputError(f"{folder} is inside {source}, which images are read from; choose an OUT elsewhere")


def inspect(
    folder: Path, settings: Mapping[str, Any], resume: bool, describe_images: Callable[[], str] = lambda: "other images"
) -> Literal["new", "begun", "done"]:
    """Return what a folder holds: nothing yet, this run unfinished, or this run finished. Writes nothing.

    Args:
        folder: The run folder, which need not exist.
        settings: What must be equal for a run to be the same.
        resume: Whether a begun run may be resumed.
        describe_images: Describes how the images of the new task differ from those of the run in the folder.

    Raises:
        InputError: The folder holds other files, a run with other settings (each difference is named), or a begun run
            and `resume` is false.
    """
    file = folder / "run.json"
    if not file.exists():
        _check_no_other_files(folder)
        return "new"
    try:
        run = read(folder)
        changed = differences(run["settings"], json.loads(json.dumps(settings)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file} is damaged or not from taskgraft; choose an empty or new OUT") from error
    if changed:
        lines = [f"{line} ({describe_images()})" if line.startswith("data.new was") else line for line in changed[:6]]
        raise InputError(
            f"{folder} already holds a run with other settings: {', '.join(lines)}; choose another OUT, or use the "
            "same settings"
        )
    if run.get("done"):
        return "done"
    if not resume:
        if _is_locked(folder):
            raise _busy_error(folder)
        raise InputError(f"{folder} holds this run, unfinished: add --resume to continue from its last checkpoint")
    return "begun"


def _check_no_other_files(folder: Path) -> None:
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    # a start that was killed may have left a partial file of the run's own
    stems = {name: match[1] if (match := LEFTOVER.fullmatch(name)) else name for name in names}
    other = sorted(name for name, stem in stems.items() if name not in EXPECTED and stem not in EXPECTED)
    if other:
        raise InputError(f"{folder} already holds other files ({', '.join(other[:3])}); choose an empty or new OUT")


def differences(stored: Mapping[str, Any], expected: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return "name was X, is Y" for each setting that differs, sorted by name; nested mappings are compared by key."""
    lines = []
    for key in sorted(stored.keys() | expected.keys()):
        before, after = stored.get(key), expected.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            lines += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            lines.append(f"{prefix}{key} was {_shorten(before)}, is {_shorten(after)}")
    return lines


def _shorten(value: object) -> str:
    """Return a value's repr, or the beginning of a digest."""
    text = repr(value)
    return f"{text[:13]}…" if isinstance(value, str) and len(value) == 64 else text


def create(
    folder: Path,
    settings: Mapping[str, Any],
    resolved: Mapping[str, Any],
    command: str,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Write run.json and command.txt: the run has begun.

    Args:
        folder: The run folder.
        settings: What must be equal for a run to be the same.
        resolved: What the settings became on this machine.
        command: The command that was typed.
        environment: Versions and hardware.
    """
    run = {"settings": settings, "resolved": resolved, "environment": environment or {}, "done": False}
    write_json(folder / "run.json", run)
    write_text(folder / "command.txt", command + "\n")


def read(folder: Path) -> dict[str, Any]:
    """Read run.json, as `create` wrote and `update` changed it."""
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))


def update(folder: Path, **changes: Any) -> None:
    """Replace entries of run.json."""
    write_json(folder / "run.json", {**read(folder), **changes})


def compare_environment(folder: Path, environment: Mapping[str, str]) -> list[str]:
    """Return how versions and hardware differ from those that the run was begun with, and store the differences."""
    run = read(folder)
    changed = differences(run.get("environment") or environment, environment)
    earlier = run.get("environment_changes", [])
    if not set(changed) <= set(earlier):
        update(folder, environment_changes=sorted({*earlier, *changed}))
    return changed


def discard(folder: Path) -> None:
    """Delete what a run wrote that failed before its first checkpoint, so that its folder is free again."""
    if not any((folder / "state").glob("step-*")) and not (folder / "config.json").exists():
        for name in ("run.json", "command.txt", "metrics.jsonl", "split.csv", "excluded.csv"):
            (folder / name).unlink(missing_ok=True)


def append_metrics(folder: Path, line: StepMetrics) -> None:
    """Append a line to metrics.jsonl."""
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(line.model_dump_json(exclude_defaults=True) + "\n")


def read_metrics(folder: Path) -> list[StepMetrics]:
    """Read metrics.jsonl without a half-written last line; empty where there is no such file."""
    try:
        text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    return [StepMetrics.model_validate_json(line) for line in text.split("\n")[:-1] if line]


def truncate_metrics(folder: Path, step: int) -> list[StepMetrics]:
    """Delete the lines after a step, which a resumed run writes again; return the remaining ones."""
    lines = [line for line in read_metrics(folder) if line.step <= step]
    write_text(folder / "metrics.jsonl", "".join(line.model_dump_json(exclude_defaults=True) + "\n" for line in lines))
    flush(folder)
    return lines
