"""What people have in memory becomes the same `Images`; what does not fit is refused in one line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from taskgraft import Images, InputError
from taskgraft.data import normalize
from taskgraft.data.in_memory import as_images
from toys import NEW, make_images

GIVEN = make_images(7, NEW, 0)
PIXELS, LABELS = GIVEN.pixels, GIVEN.labels[NEW.name]
FLOATS = PIXELS.permute(0, 3, 1, 2).float() / 255


class Listed(Dataset[Any]):
    """A map-style dataset of (image, int) that has a length and no end."""

    def __init__(self, image: Callable[[int], Any]) -> None:
        self.image = image

    def __len__(self) -> int:
        return len(LABELS)

    def __getitem__(self, row: int) -> Any:
        return self.image(row), int(LABELS[row % len(LABELS)])


class Streamed(IterableDataset[Any]):
    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        yield from zip(FLOATS, LABELS.tolist(), strict=True)


@pytest.mark.parametrize(
    "examples",
    [
        (PIXELS, LABELS),
        (PIXELS.numpy(), LABELS.numpy()),
        (PIXELS.numpy(), LABELS.tolist()),
        (FLOATS, LABELS.int()),
        (FLOATS.double().numpy(), LABELS),
        TensorDataset(FLOATS, LABELS),
        Streamed(),
        Listed(lambda row: Image.fromarray(PIXELS[row].numpy())),
        Listed(lambda row: PIXELS[row].numpy()),
        Listed(lambda row: PIXELS[row].permute(2, 0, 1)),  # as torchvision's PILToTensor gives it
        DataLoader(TensorDataset(FLOATS, LABELS), batch_size=3),
        DataLoader(Listed(lambda row: FLOATS[row]), batch_size=3),
    ],
)
def test_every_form_is_read(examples: Any) -> None:
    images = as_images(examples, NEW)
    assert images.labels[NEW.name].tolist() == LABELS.tolist()
    torch.testing.assert_close(normalize(images, 0, 7), FLOATS)
    assert len(images.names) == 7


def test_images_pass_as_they_are() -> None:
    assert as_images(GIVEN, NEW) is GIVEN
    unlabeled = GIVEN._replace(labels={NEW.name: torch.tensor([-1] * 6 + [2])})
    assert as_images(unlabeled, NEW) is unlabeled
    vectors = torch.randn(7, 5)
    assert torch.equal(as_images((vectors, LABELS), NEW).pixels, vectors)
    gray = as_images((PIXELS[..., :1], LABELS), NEW)
    assert normalize(gray, 0, 7).shape == (7, 1, 32, 32)


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        (PIXELS, "images are given as a Tensor; give Images, a pair"),
        ("folder", "images are given as a str; give Images"),
        ((PIXELS, LABELS, LABELS), "images are given as a tuple; give Images"),
        (([[1, 2]], [0]), "inputs are a list; give an array or tensor"),
        (
            (PIXELS.permute(0, 3, 1, 2), LABELS),
            r"inputs are \[7, 3, 32, 32\] of uint8; give uint8 pixels \[N, H, W, 3\]",
        ),
        ((PIXELS.long(), LABELS), r"of int64; give uint8 pixels"),
        ((PIXELS.numpy().astype(bool), LABELS), "of bool; give uint8 pixels"),
        ((FLOATS / 0 * 0, LABELS), "7 of 7 inputs have values that are not finite; leave them out"),
        ((FLOATS, ["red"] * 7), r"labels are \[7\] of <U3; give the class index of each image"),
        ((FLOATS, LABELS.float()), r"labels are \[7\] of float32; give the class index"),
        ((FLOATS, LABELS[:5]), "7 images and 5 labels; give one label per image"),
        ((FLOATS, LABELS + 1), "label 4 of image 3 is none of the 4 classes of 'paint'; count them from 0"),
        ((FLOATS, LABELS - 2), "label -2 of image 0 is none of the 4 classes"),
        ((FLOATS, -torch.ones(7).long()), "no image is labeled for 'paint': every label is -1; give class indices"),
        (
            Images(PIXELS, {"shape": LABELS}, GIVEN.names),
            "labeled for shape, but the task to learn is 'paint'; add its",
        ),
        (DataLoader(TensorDataset(FLOATS)), "DataLoader gives a list; give one of pairs"),
        (TensorDataset(FLOATS, LABELS, LABELS), "the Dataset gives a tuple; give one of pairs"),
        (TensorDataset(FLOATS[:0], LABELS[:0]), "the Dataset or DataLoader is empty; give one with images"),
        (Listed(lambda row: "a.png"), "the Dataset gives a str as an image; give a tensor"),
        (
            Listed(lambda row: FLOATS[row][:, row:]),
            r"images differ in size \(\(3, 32, 32\), \(3, 31, 32\), .*; add a tr",
        ),
    ],
)
def test_what_does_not_fit_is_refused(examples: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        as_images(examples, NEW)
