"""The real checkpoint and pictures, where they are at hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from taskgraft.jobs.evaluate import evaluate

SHARED = Path(__file__).parents[3] / "shared"
needs = pytest.mark.skipif(not (SHARED / "data/cars").is_dir(), reason="the real pictures of cars are not here")


@needs
def test_a_foreign_checkpoint_measures_as_its_makers_say() -> None:
    found = evaluate(
        str(SHARED / "checkpoints/cars196_tf_efficientnet_lite0.pth.tar"),
        SHARED / "data/cars/val",
        arch="tf_efficientnet_lite0",
        labels=SHARED / "checkpoints/cars196_labels.txt",
        wanted="96 squash bilinear imagenet",
    )
    assert found["images"] == 873
    assert found["accuracy"] == pytest.approx(0.741, abs=0.005)
