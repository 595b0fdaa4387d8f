"""Training in memory, from Python: any module with a final linear layer, any tensors; nothing is written."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from taskgraft.config import TrainingConfig, validate
from taskgraft.methods import composition
from taskgraft.methods.presets import DEFAULT_METHOD
from taskgraft.methods.protocol import Method
from taskgraft.models.classifier import Classifier
from taskgraft.models.inference import imprint_added_classes
from taskgraft.training import loop
from taskgraft.types import Images, TrainingData


class Learned(NamedTuple):
    """A trained classifier, and the memory to pass to the next `learn`."""

    classifier: Classifier
    memory: dict[str, Any]


def learn(
    classifier: Classifier,
    images: Images,
    *,
    method: str | Method = DEFAULT_METHOD,
    config: TrainingConfig = TrainingConfig(),  # noqa: B008 - immutable
    memory: Mapping[str, Any] | None = None,
    old: Images | None = None,
    score: Callable[[Classifier], float] | None = None,
) -> Learned:
    """Train the newest task of a classifier on labeled images.

    `wrap` makes a classifier of a module, and `grow` adds a task to it.

    Args:
        classifier: The classifier; it is not changed.
        images: Labeled images of its newest task.
        method: How forgetting of the older tasks is prevented: in the notation, or composed.
        config: Training settings; precision "auto" is fp32 here.
        memory: What the last `learn` returned.
        old: Sample of old images, for the methods that use one.
        score: Validation Score of a classifier, for methods that select by one.

    Returns:
        The trained classifier in eval mode, and the memory for the next task.

    Raises:
        InputError: A setting is not allowed, or the method lacks what it needs.
    """
    composed = composition.build(method) if isinstance(method, str) else method
    sources = TrainingData(images, old, config.views, config.augment, config.seed, score)
    config = replace(validate(config), precision="fp32" if config.precision == "auto" else config.precision)
    past = dict(memory or {})
    classifier = copy.deepcopy(classifier)
    classifier.softmax = config.softmax
    state = loop.fit(loop.start(classifier, composed, sources, past, config), composed, sources, config)
    classifier, new_memory = state.classifier, {}
    if composed.finish:
        classifier, new_memory = composed.finish(classifier, state.memory, sources)
    imprint_added_classes(classifier, sources)
    return Learned(classifier.eval(), {**past, **{name: tensors for name, tensors in new_memory.items() if tensors}})
