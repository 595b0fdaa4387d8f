"""The one exception that people are meant to read."""

from __future__ import annotations


class Problem(Exception):
    """Something the user can mend: what was wrong, where, and what to do, in one line.

    `code` is the exit code of the command line (2 usage or input, 3 environment, 4 training failed).
    """

    def __init__(self, message: str, code: int = 2) -> None:
        """Keep the message and the exit code."""
        super().__init__(message)
        self.code = code
