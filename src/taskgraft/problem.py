"""The one exception that people are meant to read."""

from __future__ import annotations

import importlib.util


class Problem(Exception):
    """Something the user can mend: what was wrong, where, and what to do, in one line.

    `code` is the exit code of the command line (2 usage or input, 3 environment, 4 training failed).
    """

    def __init__(self, message: str, code: int = 2) -> None:
        """Keep the message and the exit code."""
        super().__init__(message)
        self.code = code


def need(extra: str, *packages: str, what: str) -> None:
    """Raise Problem (code 3) where a package is not installed that `what` needs.

    `extra` is the one of taskgraft that brings it; "" for a package that none brings.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        install = f"'taskgraft[{extra}]'" if extra else " ".join(missing)
        raise Problem(f"{what} needs {', '.join(missing)}; install with: pip install {install}", code=3)
