"""`learn` takes what people have, and tells how the loss went."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from taskgraft import Images, InputError, grow, learn, pytree
from taskgraft.config import lr_at
from taskgraft.models.classifier import Classifier
from toys import NEW, OLD, RUN, equal, make_images, parent

IMAGES = make_images(16, NEW, 5)
FLOATS, LABELS = IMAGES.pixels.permute(0, 3, 1, 2).float() / 255, IMAGES.labels[NEW.name]
SHORT = replace(RUN, steps=4, augment="none", views=1, log_every=3)


@pytest.fixture(scope="module")
def child() -> Classifier:
    return grow(parent(), NEW)


def test_pairs_datasets_and_loaders_train_the_same(child: Classifier) -> None:
    named = Images(FLOATS, {NEW.name: LABELS}, IMAGES.names)
    expected = pytree.state(learn(child, named, method="distill", config=SHORT).classifier)
    dataset = TensorDataset(FLOATS, LABELS)
    for images in ((FLOATS, LABELS), dataset, DataLoader(dataset, batch_size=5)):
        found = learn(child, images, method="distill", config=SHORT)
        assert equal(pytree.state(found.classifier), expected)


def test_history_has_the_logged_steps(child: Classifier) -> None:
    found = learn(child, IMAGES, method="distill + l2sp", config=SHORT)
    assert [line.step for line in found.history] == [1, 3, 4]
    assert all(set(line.terms) == {"data", "distill", "l2sp"} for line in found.history)
    assert found.history[1].lr == lr_at(SHORT, 2)
    assert repr(found).startswith("Learned(tasks: shape (3), paint (4); 4 steps, loss ")
    assert len(repr(found)) < 100


def test_images_of_another_task_are_refused(child: Classifier) -> None:
    with pytest.raises(InputError, match="labeled for shape, but the task to learn is 'paint'"):
        learn(child, make_images(6, OLD, 0), method="finetune", config=SHORT)


def test_grow_has_a_seed() -> None:
    assert torch.equal(grow(parent(), NEW).linears()[1].weight, grow(parent(), NEW, 0).linears()[1].weight)
