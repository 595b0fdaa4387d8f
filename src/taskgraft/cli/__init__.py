"""The command line. Only this package prints, exits, or turns an error into one line."""

from taskgraft.cli.app import app, main

__all__ = ["app", "main"]
