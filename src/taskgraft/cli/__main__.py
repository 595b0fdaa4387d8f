"""Entry point of `python -m taskgraft.cli`, for launchers such as torchrun that start a module."""

from taskgraft.cli.app import main

main()
