"""Where pixels wait: on the device if they fit. The meta device stands for one that is not the CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from taskgraft import data
from taskgraft.data.augmentation import AUGMENT
from taskgraft.data.placement import SHARE, place, take, to_device
from toys import NEW, make_data, make_images

META = torch.device("meta")


def test_pixels_move_where_they_fit() -> None:
    images = make_images(10, NEW, 1)
    size = images.pixels.nbytes
    assert place(images, META, free=round(size / SHARE)).pixels.device == META
    assert place(images, META, free=round(size / SHARE) - 1) is images
    assert place(images, torch.device("cpu")) is images
    assert place(images, META, free=10 * size)._replace(pixels=images.pixels) == images, "nothing else changes"


@pytest.mark.parametrize("augment", AUGMENT)
@pytest.mark.parametrize("resident", [True, False])
def test_batches_are_made_on_the_device_from_either_place(augment: str, resident: bool) -> None:
    sources = make_data()._replace(augment=augment, unlabeled=make_images(9, NEW, 8))
    here = data.build_batch(sources, 2, 8)
    if resident:
        sources = sources._replace(new=sources.new._replace(pixels=sources.new.pixels.to(META)))
    there = data.build_batch(sources, 2, 8, META)
    assert there.images.device == META
    assert there.images.shape == here.images.shape
    assert there.images.stride() == here.images.stride() or "crop" in augment
    assert torch.equal(there.rows, here.rows)
    assert all(torch.equal(there.labels[task], here.labels[task]) for task in here.labels)


def test_rows_are_taken_by_index_or_mask() -> None:
    values = torch.arange(12).view(6, 2)
    mask = torch.tensor([True, False, True, False, False, True])
    assert torch.equal(take(values, mask), values[mask])
    assert torch.equal(take(values, torch.tensor([5, 0, 5])), values[[5, 0, 5]])
    assert to_device(values, values.device) is values


def test_an_order_of_epochs_is_the_same_one_row_at_a_time() -> None:
    sources = make_data()
    count = len(sources.new.pixels)
    index, epoch = data.batch_indices(sources, 1, 3 * count)
    for row in range(3 * count):
        position = 3 * count + row
        one, number = data.batch_indices(sources, position, 1)
        assert (index[row], epoch[row]) == (one[0], number[0])
    assert index.dtype == np.int64
