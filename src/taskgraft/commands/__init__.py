"""The use cases, one file for each command: they join everything below and print nothing."""
