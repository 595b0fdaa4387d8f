"""How much images without labels tell: nothing where a teacher always answers the same, log K where it is sure."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from taskgraft.pipeline.usefulness import describe_usefulness, measure_information
from taskgraft.results.predictions import Predictions
from toys import OLD, make_images, parent


def _predict(logits: np.ndarray) -> Predictions:
    return Predictions({"a": tuple("xyz")}, "per-task", ("",) * len(logits), {}, {"a": logits.astype(np.float32)})


def test_sure_and_varied_answers_tell_everything() -> None:
    information, entropy = measure_information(_predict(1000 * np.eye(3)[[0, 1, 2] * 5]), "a")
    assert information == pytest.approx(np.log(3))
    assert entropy == pytest.approx(0)


def test_equal_answers_tell_nothing_however_sure() -> None:
    for logits in (np.zeros((6, 3)), 1000 * np.eye(3)[[1] * 6]):
        assert measure_information(_predict(logits), "a")[0] == pytest.approx(0, abs=1e-9)


def test_the_description_warns_of_noise() -> None:
    teacher = parent()
    noise = make_images(40, OLD, 1)._replace(pixels=torch.full((40, 32, 32, 3), 7, dtype=torch.uint8))
    (text,) = describe_usefulness(teacher, noise, "the images")
    assert text.startswith("shape: the teacher tells 1.0 of 3 classes apart in the images")
    assert "they say next to nothing about shape" in text
