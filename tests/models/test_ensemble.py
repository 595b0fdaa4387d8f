"""Several classifiers as one: each answers as it does alone, on images that are converted for it."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from taskgraft import data
from taskgraft.models.classifier import grow
from taskgraft.models.ensemble import Conversion, join
from taskgraft.models.inference import compute_logits, predict
from toys import NEW, OLD, make_images, parent

HALF, IMAGENET = ((0.5,) * 3, (0.25,) * 3), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_every_model_answers_as_it_does_alone() -> None:
    first, second = parent(), grow(parent("test_efficientnet"), NEW, 3)
    images = make_images(30, NEW, 4)
    conversions = [Conversion(32, HALF, HALF), Conversion(48, HALF, IMAGENET)]
    joint = join([first, second], conversions, torch.zeros(1, 3, 32, 32))
    assert [task.name for task in joint.tasks] == ["shape", "paint"]
    outputs = predict(joint, images).logits
    assert (outputs["shape"] == predict(first, images).logits["shape"]).all(), "the first one answers what both have"
    raw = images.pixels.permute(0, 3, 1, 2).float() / 255
    resized = F.interpolate(raw, (48, 48), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in IMAGENET)
    alone = compute_logits(second, (resized - mean) / std)["paint"]
    torch.testing.assert_close(torch.from_numpy(outputs["paint"]), alone, atol=1e-4, rtol=1e-4)


def test_images_that_are_right_already_stay_bit_identical() -> None:
    images = data.normalize(make_images(4, OLD, 4), 0, 4)
    assert Conversion(32, HALF, HALF)(images) is images
