"""The folder a model lives in: open any checkpoint, write and read bundles."""

from taskgraft.bundle.format import Bundle, read, write
from taskgraft.bundle.loaders import open_parent

__all__ = ["Bundle", "open_parent", "read", "write"]
