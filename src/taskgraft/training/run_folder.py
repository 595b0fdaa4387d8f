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
from taskgraft.errors import InputError, SetupError, TaskgraftError
from taskgraft.results.files import escape_surrogates, flush, write_json, write_text
from taskgraft.results.record import StepMetrics

# Files of a run that has not begun, or that others write; anything else in a new OUT is somebody else's.
OWN = {"run.json", ".lock", ".holder", "metrics.jsonl", "state", "log.txt", "command.txt", "tensorboard", "search"}
LEFTOVER = re.compile(r"\.(.+)\.\d+(\.mode)?")  # what `files.atomic` and `checkpoints.save` write before they rename
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.ESTALE}


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Lock a run folder, creating it; the lock ends with its process. Of several processes of a run, one locks for all.

    Args:
        folder: The run folder.

    Raises:
        InputError: It cannot be created or written, or another process is writing it.
        SetupError: The disk is full, read-only or failing while the lock is held.
    """
    with ExitStack() as stack:
        distributed.broadcast(lambda: stack.enter_context(_lock_here(folder)))
        yield


@contextmanager
def _lock_here(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be created: {error.strerror}; choose another OUT") from error
    file_lock, holder = FileLock(folder / ".lock", thread_local=False), folder / ".holder"
    try:
        file_lock.acquire(timeout=0)
    except Timeout as error:
        raise _build_busy_error(folder) from error
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


def _build_busy_error(folder: Path) -> TaskgraftError:
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
    """A SetupError for a disk that is full, failing or read-only; any other error as it is."""
    if not (error.errno in DISK if isinstance(error, OSError) else "os error" in str(error)):
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


def check_location(folder: Path, sources: Iterable[Path]) -> None:
    """Check that an OUT can be used. Tables may be in the folder that OUT is in: only what they list is read.

    Args:
        folder: The run folder, which need not exist.
        sources: Files and folders that images are read from.

    Raises:
        InputError: The path is too long or not UTF-8, or is inside a folder of images.
    """
    if escape_surrogates(str(folder)) != str(folder):
        raise InputError(f"{escape_surrogates(str(folder))} is not valid UTF-8; choose another OUT")
    try:
        folder.exists()
    except OSError as error:
        raise InputError(f"{str(folder)[:80]}… cannot be used: {error.strerror}; choose another OUT") from error
    real = Path(os.path.realpath(folder))
    for source in sources:
        if source.is_dir() and real.is_relative_to(os.path.realpath(source)):
            raise InputError(f"{folder} is inside {source}, which images are read from; choose an OUT elsewhere")


def inspect(
    folder: Path, settings: Mapping[str, Any], resume: bool, describe_images: Callable[[], str] = lambda: "other images"
) -> Literal["new", "begun", "done"]:
    """Tell what a folder holds. Writes nothing.

    Args:
        folder: The run folder, which need not exist.
        settings: What must be equal for a run to be the same.
        resume: Whether a begun run may be resumed.
        describe_images: Describes how the images of the new task differ from those of the run in the folder.

    Returns:
        "new": nothing yet; "begun": this run, unfinished; "done": this run, finished.

    Raises:
        InputError: The folder holds other files, a run with other settings (each difference is named), or a begun run
            and `resume` is false.
    """
    file = folder / "run.json"
    if not file.exists():
        names = {item.name for item in folder.iterdir()} if folder.is_dir() else set()
        strange = sorted(name for name in names - OWN if not _is_own_leftover(name))
        if strange:
            raise InputError(
                f"{folder} already holds other files ({', '.join(strange[:3])}); choose an empty or new OUT"
            )
        return "new"
    try:
        stored = _read_run(folder)
        changed = differences(stored["settings"], json.loads(json.dumps(settings)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file} is damaged or not from taskgraft; choose an empty or new OUT") from error
    if changed:
        listed = [f"{line} ({describe_images()})" if line.startswith("data.new was") else line for line in changed[:6]]
        raise InputError(
            f"{folder} already holds a run with other settings: {', '.join(listed)}; choose another OUT, or use the "
            "same settings"
        )
    if stored.get("done"):
        return "done"
    if not resume:
        if _is_locked(folder):
            raise _build_busy_error(folder)
        raise InputError(f"{folder} holds this run, unfinished: add --resume to continue from its last checkpoint")
    return "begun"


def _is_own_leftover(name: str) -> bool:
    """Whether a start that was killed left this while writing one of a run's own files."""
    match = LEFTOVER.fullmatch(name)
    return match is not None and match[1] in OWN


def differences(stored: Mapping[str, Any], expected: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Describe each setting that differs.

    Args:
        stored: Settings as they were; nested mappings are compared by key.
        expected: Settings as they are.
        prefix: What the names of settings begin with.

    Returns:
        One "name was X, is Y" for each difference, sorted by name.
    """
    found = []
    for key in sorted(stored.keys() | expected.keys()):
        before, after = stored.get(key), expected.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            found += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            found.append(f"{prefix}{key} was {_shorten(before)}, is {_shorten(after)}")
    return found


def _shorten(value: object) -> str:
    """A value's repr; of a digest its beginning."""
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


def mark_done(folder: Path) -> None:
    """Mark the run as finished.

    Args:
        folder: The run folder.
    """
    _update_run(folder, done=True)


def discard(folder: Path) -> None:
    """Delete what a run wrote that was refused before its first checkpoint, so that its folder is free again.

    Args:
        folder: The run folder.
    """
    if not any((folder / "state").glob("step-*")) and not (folder / "config.json").exists():
        for name in ("run.json", "command.txt", "metrics.jsonl", "split.csv", "excluded.csv"):
            (folder / name).unlink(missing_ok=True)


def read_resolved(folder: Path) -> dict[str, Any]:
    """Read what the settings became when the run was first started, or later.

    Args:
        folder: The run folder.

    Returns:
        Values as `create` and `update_resolved` wrote them.
    """
    return _read_run(folder)["resolved"]


def update_resolved(folder: Path, **changes: Any) -> None:
    """Store what the settings became later, for a resume.

    Args:
        folder: The run folder.
        **changes: Values by name.
    """
    _update_run(folder, resolved={**read_resolved(folder), **changes})


def compare_environment(folder: Path, environment: Mapping[str, str]) -> list[str]:
    """Compare versions and hardware with those that the run was begun with, and store the differences.

    Args:
        folder: The run folder.
        environment: Versions and hardware now.

    Returns:
        Differences such as 'torch was 2.13.0, is 2.14.1'.
    """
    stored = _read_run(folder)
    changed = differences(stored.get("environment") or environment, environment)
    known = stored.get("environment_changes", [])
    if not set(changed) <= set(known):
        _update_run(folder, environment_changes=sorted({*known, *changed}))
    return changed


def read_environment_changes(folder: Path) -> list[str]:
    """Read all differences that `compare_environment` found since the run was begun.

    Args:
        folder: The run folder.

    Returns:
        Differences, sorted.
    """
    return _read_run(folder).get("environment_changes", [])


def append_metrics(folder: Path, line: StepMetrics) -> None:
    """Add a line to metrics.jsonl.

    Args:
        folder: The run folder.
        line: Metrics of a step.
    """
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(line.model_dump_json(exclude_defaults=True) + "\n")


def read_metrics(folder: Path) -> list[StepMetrics]:
    """Read metrics.jsonl without a half-written last line.

    Args:
        folder: The run folder.

    Returns:
        Metrics by step; empty where there is no such file.
    """
    try:
        text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    return [StepMetrics.model_validate_json(line) for line in text.split("\n")[:-1] if line]


def truncate_metrics(folder: Path, step: int) -> list[StepMetrics]:
    """Delete the lines after a step: a resumed run writes them again.

    Args:
        folder: The run folder.
        step: The last step to keep.

    Returns:
        The lines that were kept.
    """
    lines = [line for line in read_metrics(folder) if line.step <= step]
    write_text(folder / "metrics.jsonl", "".join(line.model_dump_json(exclude_defaults=True) + "\n" for line in lines))
    flush(folder)
    return lines


def _read_run(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))


def _update_run(folder: Path, **changes: Any) -> None:
    write_json(folder / "run.json", {**_read_run(folder), **changes})
