"""The folder that a model is stored in: open any checkpoint, write and read bundles, predict images at hand."""

from taskgraft.bundle.format import Bundle, read_bundle, write_bundle
from taskgraft.bundle.in_memory import describe_classifier
from taskgraft.bundle.loaders import describe_transformers, from_pretrained, open_parent
from taskgraft.bundle.prediction import ImageLike, Prediction

__all__ = [
    "Bundle",
    "ImageLike",
    "Prediction",
    "describe_classifier",
    "describe_transformers",
    "from_pretrained",
    "open_parent",
    "read_bundle",
    "write_bundle",
]
