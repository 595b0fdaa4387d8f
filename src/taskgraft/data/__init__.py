"""Images: folders and tables -> verified files -> uint8 cache -> batches. The user's files are never changed."""

from taskgraft.data.augmentation import append_images, augment, batch_indices, build_batch, build_views, normalize
from taskgraft.data.dataset import Dataset, open_images
from taskgraft.data.mixing import blend, mix_batch
from taskgraft.data.placement import place, take, to_device
from taskgraft.data.transforms import Preprocessing

__all__ = [
    "Dataset",
    "Preprocessing",
    "append_images",
    "augment",
    "batch_indices",
    "blend",
    "build_batch",
    "build_views",
    "mix_batch",
    "normalize",
    "open_images",
    "place",
    "take",
    "to_device",
]
