"""A large file of rows made in parts: each finished part is kept, any number of processes may make them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from taskgraft.commands import rows
from taskgraft.errors import InputError
from taskgraft.results.files import write_json
from taskgraft.training.run_folder import differences


class Count(NamedTuple):
    """How many images were read, and how many could not be."""

    read: int
    bad: int


def home(out: Path) -> Path:
    """Where the parts of a file lie until it is whole."""
    return out.with_name(out.name + ".parts")


def begin(out: Path, plan: Mapping[str, Any], resume: bool) -> bool:
    """Make the folder of parts, or see that it is of the same work; True where OUT is whole already.

    Raises TaskgraftError for a file or parts that are there without `resume`, and for parts of other work, naming what
    differs. Several processes may begin at once.
    """
    plan = json.loads(json.dumps(plan))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with _lock(out):
            if out.exists():
                if resume:
                    _lock_file(out).unlink(missing_ok=True)  # whoever still waits for it finds OUT
                    return True
                raise InputError(f"{out} exists; choose another --out, or --resume if it is of the same command")
            file = home(out) / "plan.json"
            if not file.exists():
                home(out).mkdir(exist_ok=True)
                write_json(file, plan)
                return False
            _agree(file, plan, resume)
    except OSError as error:
        raise InputError(f"--out {out} cannot be written: {error.strerror}; choose another place") from error
    return False


def _agree(file: Path, plan: Mapping[str, Any], resume: bool) -> None:
    if not resume:
        raise InputError(f"{file.parent} holds parts of an interrupted run; --resume goes on, or remove it")
    try:
        found = differences(json.loads(file.read_text(encoding="utf-8")), plan)
    except (ValueError, AttributeError) as error:
        raise InputError(f"{file} is damaged; remove {file.parent} and begin again") from error
    if found:
        raise InputError(f"{file.parent} is of another run: {'; '.join(found[:5])}; choose another --out, or remove it")


def place(out: Path, number: int) -> Path:
    """The file of one part."""
    return home(out) / f"{number:06d}{out.suffix}"


def finished(out: Path, number: int) -> bool:
    """Whether a part is whole."""
    return _note(out, number).exists()


def finish(out: Path, number: int, count: Count) -> None:
    """Say that a part is whole; what it counted is written last."""
    write_json(_note(out, number), count._asdict())


def join(out: Path, total: int) -> Count | None:
    """Merge the parts into OUT once all `total` are whole, and remove them; None while some are missing.

    Whoever finishes last merges; a process that comes later finds the file and has nothing to do.
    """
    with _lock(out):
        if out.exists():
            _lock_file(out).unlink(missing_ok=True)
            return Count(0, 0)
        if not all(finished(out, number) for number in range(total)):
            return None
        counts = [json.loads(_note(out, number).read_text()) for number in range(total)]
        rows.merge([place(out, number) for number in range(total)], out)
        shutil.rmtree(home(out))
    _lock_file(out).unlink(missing_ok=True)  # whoever still waits for it finds OUT
    return Count(sum(one["read"] for one in counts), sum(one["bad"] for one in counts))


def _note(out: Path, number: int) -> Path:
    return home(out) / f"{number:06d}.done"


def _lock_file(out: Path) -> Path:
    return out.with_name(f".{out.name}.lock")


def _lock(out: Path) -> FileLock:
    return FileLock(_lock_file(out))
