"""The command line: each command is a call. Only this package prints, exits, or turns an error into a line."""

from taskgraft.cli.app import app, main

__all__ = ["app", "main"]
