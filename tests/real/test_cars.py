"""The real checkpoint and images, where they are at hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import taskgraft
from taskgraft.commands.evaluate import evaluate
from taskgraft.config import TrainingConfig

SHARED = Path(__file__).parents[3] / "shared"
needs = pytest.mark.skipif(not (SHARED / "data/cars").is_dir(), reason="the real images of cars are not here")


@needs
def test_a_foreign_checkpoint_measures_as_its_makers_say() -> None:
    result = evaluate(
        str(SHARED / "checkpoints/cars196_tf_efficientnet_lite0.pth.tar"),
        SHARED / "data/cars/val",
        arch="tf_efficientnet_lite0",
        labels=SHARED / "checkpoints/cars196_labels.txt",
        preprocessing="96 squash bilinear imagenet",
    )
    assert result["images"] == 873
    assert result["accuracy"] == pytest.approx(0.741, abs=0.005)


@needs
def test_the_default_keeps_every_old_answer_and_learns_the_new_task(tmp_path: Path) -> None:
    done = taskgraft.extend(
        SHARED / "checkpoints/cars196_tf_efficientnet_lite0.pth.tar",
        SHARED / "data/colours",
        tmp_path / "both",
        task="colour",
        config=TrainingConfig(steps=20, eval_every=20, precision="fp32-channels-last"),
        arch="tf_efficientnet_lite0",
        labels=SHARED / "checkpoints/cars196_labels.txt",
        preprocessing="96 squash bilinear imagenet",
        parent_task="model",
    )
    before, after = done.predictions["new-parent"].logits["model"], done.predictions["new"].logits["model"]
    assert np.array_equal(before, after)
    assert done.record.tasks[1].child
    assert done.record.tasks[1].child.mean > 0.75
