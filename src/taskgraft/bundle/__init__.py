"""The folder that a model is stored in: open any checkpoint, write and read bundles."""

from taskgraft.bundle.format import Bundle, read_bundle, write_bundle
from taskgraft.bundle.loaders import open_parent

__all__ = ["Bundle", "open_parent", "read_bundle", "write_bundle"]
