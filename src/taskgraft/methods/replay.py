"""Experience replay: mix a sample of old images into every batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch

from taskgraft import data
from taskgraft.config import Range
from taskgraft.errors import InputError
from taskgraft.methods.protocol import Method, Settings, Traits
from taskgraft.models.classifier import Classifier, old_class_counts
from taskgraft.types import MIXED_IN, Batch, Images, Memory, TrainingData


@dataclass(frozen=True)
class Replay(Settings):
    """Add labeled old images to each batch, `share` per new image (Ratcliff 1990; Chaudhry et al. 2019).

    Needs `--old`. With all old training images this is joint training, the upper bound for every other method.
    `keep` stores the old sample in the bundle for the next extension: the images are then part of the model folder.
    """

    traits = Traits(needs_old_images=True)

    share: Annotated[float, Range(0.1, 2.0, above=0)] = 1.0
    keep: bool = False

    def build(self) -> Method:
        """Use `remember` (the old sample), `mix` and `finish` (the sample again, if `keep`)."""

        def remember(classifier: Classifier, sources: TrainingData, past: Memory) -> Memory:
            old = sources.old
            if old is None and not past:
                raise InputError("replay needs a sample of old images: give one with --old DIR, or use distill")
            if old is None:
                return past
            labels = {task: target for task, target in old.labels.items() if task in old_class_counts(classifier)}
            flips = torch.tensor(int("flip" in sources.augment))
            return {
                "pixels": old.pixels.cpu().clone(), "labels": {task: target.clone() for task, target in labels.items()},
                "mean": torch.tensor(old.mean), "std": torch.tensor(old.std), "flips": flips,
            }  # fmt: skip

        def mix(batch: Batch, memory: Memory, rng: np.random.Generator) -> Batch:
            count = max(1, round(self.share * len(batch.images)))
            rows = rng.integers(0, len(memory["pixels"]), count)
            old = Images(memory["pixels"], {}, (), _floats(memory["mean"]), _floats(memory["std"]))
            augment = "shift+flip" if bool(memory["flips"]) else "shift"
            view, key, device = rng.integers(0, 2**31, count), int(rng.integers(0, 2**31)), batch.images.device
            views = data.augment(old, rows, view, augment, key, device)
            labels = {task: target[torch.from_numpy(rows)] for task, target in memory["labels"].items()}
            return data.append_images(batch, views, labels, MIXED_IN)

        def finish(classifier: Classifier, memory: Memory, sources: TrainingData) -> tuple[Classifier, Memory]:
            return classifier, memory if self.keep else {}

        return Method(remember=remember, mix=mix, finish=finish)


def _floats(values: torch.Tensor) -> tuple[float, ...]:
    return tuple(values.tolist())
