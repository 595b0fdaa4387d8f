"""Images: formats -> verified manifest -> uint8 cache -> views. Nothing of the user's is ever changed."""

from taskgraft.data.augmentation import augmented, batch_at, ready, view_of
from taskgraft.data.dataset import open_images
from taskgraft.data.splits import Dataset
from taskgraft.data.transforms import Preprocessing

__all__ = ["Dataset", "Preprocessing", "augmented", "batch_at", "open_images", "ready", "view_of"]
