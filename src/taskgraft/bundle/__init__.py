"""The folder a model lives in: open any checkpoint, write and read bundles."""

from taskgraft.bundle.files import Bundle, read, write
from taskgraft.bundle.parents import open_parent

__all__ = ["Bundle", "open_parent", "read", "write"]
