"""Pictures: formats -> verified manifest -> uint8 cache -> views. Nothing of the user's is ever changed."""

from taskgraft.data.manifest import open_images
from taskgraft.data.preprocess import Preprocess
from taskgraft.data.sets import DataSet
from taskgraft.data.views import augmented, batch_at, ready, view_of

__all__ = ["DataSet", "Preprocess", "augmented", "batch_at", "open_images", "ready", "view_of"]
