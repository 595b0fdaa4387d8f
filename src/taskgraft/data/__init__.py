"""Images: formats -> verified manifest -> uint8 cache -> views. Nothing of the user's is ever changed."""

from taskgraft.data.augmentation import augment, build_batch, build_views, normalize
from taskgraft.data.dataset import Dataset, open_images
from taskgraft.data.transforms import Preprocessing

__all__ = ["Dataset", "Preprocessing", "augment", "build_batch", "build_views", "normalize", "open_images"]
