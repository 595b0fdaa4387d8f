"""A plain training loop with the penalties of `taskgraft.EWC`, `MAS` and `LwF` ends where `learn` does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from reference.by_hand import PLAIN, child_of, close, perceptron, vectors
from taskgraft import EWC, L2SP, MAS, LwF, data, learn
from taskgraft.models.classifier import Classifier, inherited_parameters
from taskgraft.types import Images, Params, TrainingData
from toys import NEW, OLD

OLDS = vectors(12, OLD, 7)
PERMUTED = torch.randperm(OLDS.pixels.shape[1], generator=torch.Generator().manual_seed(2))
IMAGES: Images = vectors(20, NEW, 5)._replace(pixels=vectors(20, NEW, 5).pixels[:, PERMUTED])
Penalty = Callable[[Any, Tensor], Tensor]


def plain_loop(
    child: Classifier, penalty: Penalty, pull: Callable[[torch.optim.Optimizer], None] | None = None
) -> Params:
    """Gradient descent as anyone writes it, on the batches of the run that it is compared with."""
    optimizer = torch.optim.SGD(child.parameters(), lr=PLAIN.lr)
    sources = TrainingData(IMAGES, None, PLAIN.views, PLAIN.augment, PLAIN.seed)
    child.train()
    for step in range(PLAIN.steps):
        batch = data.build_batch(sources, step, PLAIN.batch_size)
        outputs = child(batch.images)
        loss = F.cross_entropy(outputs[NEW.name], batch.labels[NEW.name]) + penalty(outputs, batch.images)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if pull:
            pull(optimizer)
    return {name: value.detach() for name, value in child.named_parameters()}


def check_weights(found: Params, text: str, child: Classifier) -> None:
    """The weights are those of `learn` with the method but for rounding, and not those of plain fine-tuning."""
    held = learn(child, IMAGES, method=text, config=PLAIN, old=OLDS).classifier
    free = learn(child, IMAGES, method="finetune", config=PLAIN).classifier
    close(found, {name: value.detach() for name, value in held.named_parameters()}, 1e-3)
    with pytest.raises(AssertionError):
        close(found, {name: value.detach() for name, value in free.named_parameters()}, 1e-3)


@pytest.mark.parametrize("implicit", [True, False])
@pytest.mark.parametrize("name", ["ewc", "mas", "l2sp"])
def test_penalty_on_weights(name: str, implicit: bool) -> None:
    child = child_of(perceptron())
    own, old = copy.deepcopy(child), list(inherited_parameters(child))
    penalty = {
        "ewc": lambda: EWC(own, OLDS.pixels, strength=3.0, seed=PLAIN.seed, tasks=[OLD.name], parameters=old),
        "mas": lambda: MAS(own, OLDS.pixels, strength=0.5, tasks=[OLD.name], parameters=old),
        "l2sp": lambda: L2SP(own, strength=0.7, parameters=old),
    }[name]()
    if implicit:
        found = plain_loop(own, lambda outputs, images: torch.zeros(()), penalty.step)
    else:
        found = plain_loop(own, lambda outputs, images: penalty())
    check_weights(found, f"{name}(strength={penalty.strength}, implicit={implicit})", child)


def test_distillation() -> None:
    child = child_of(perceptron())
    found = plain_loop(copy.deepcopy(child), LwF(perceptron(), strength=3.0))
    check_weights(found, "lwf(strength=3)", child)
