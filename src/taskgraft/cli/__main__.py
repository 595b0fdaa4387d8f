"""`python -m taskgraft.cli`, for launchers that want a module."""

from taskgraft.cli.app import main

main()
