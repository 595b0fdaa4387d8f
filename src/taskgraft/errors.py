"""The exception tree. A message is one line: what was wrong, where, and what to do."""

from __future__ import annotations

import importlib.util
from typing import ClassVar


class TaskgraftError(Exception):
    """Base class of everything that taskgraft raises on purpose; `exit_code` is what the command line exits with."""

    exit_code: ClassVar[int] = 2


class InputError(TaskgraftError):
    """A flag, a setting, a method or a path that cannot be used as given."""


class DataError(TaskgraftError):
    """Images, labels or tables that cannot be used."""


class CheckpointError(TaskgraftError):
    """A model, a checkpoint or a bundle that cannot be opened."""


class SetupError(TaskgraftError):
    """A problem of the machine: no space, no network, a port in use, a broken installation."""

    exit_code = 3


class MissingDependency(SetupError):
    """An optional package is not installed."""


class TrainingError(TaskgraftError):
    """Training failed: a loss that is not finite, memory that ran out, a worker that died."""

    exit_code = 4


class ResultError(TaskgraftError):
    """The work was done, but its outcome is not usable: a report that cannot be made, an export that differs."""

    exit_code = 1


def require(extra: str, *packages: str, what: str) -> None:
    """Check that optional packages are installed.

    Args:
        extra: The extra of taskgraft that has them; "" where none does.
        packages: Import names.
        what: The feature that needs them, for the message.

    Raises:
        MissingDependency: One of them is not installed; the message has the command that installs it.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        install = f"'taskgraft[{extra}]'" if extra else " ".join(missing)
        raise MissingDependency(f"{what} needs {', '.join(missing)}; install with: pip install {install}")


def first_line(error: BaseException, limit: int = 160) -> str:
    """The first line of an error's message, or its type where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0][:limit]
