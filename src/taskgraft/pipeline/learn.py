"""The same training from Python, in memory: any module with a final linear layer, any tensors; nothing is written."""

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
from taskgraft.models.features import balance_added_classes
from taskgraft.training import loop
from taskgraft.types import Images, TrainingData


class Learned(NamedTuple):
    """The trained classifier, and the memory that the next task's training is to be given."""

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
    """Train the newest task of a classifier on labeled images; the older tasks are kept as `method` says.

    `wrap` makes a classifier of a module and `grow` adds a task to it; the classifier given is not changed. `memory` is
    what the last `learn` returned, `old` a sample of old images, `score` a validation Score for methods that choose by
    one (wise). Precision "auto" is fp32 here; the child is in eval mode. Raises TaskgraftError for settings that are not legal
    or a method that lacks what it needs.
    """
    plan = composition.build(method) if isinstance(method, str) else method
    sources = TrainingData(images, old, config.views, config.augment, config.seed, score)
    config = replace(validate(config), precision="fp32" if config.precision == "auto" else config.precision)
    past = dict(memory or {})
    classifier = copy.deepcopy(classifier)
    classifier.softmax = config.softmax
    state = loop.fit(loop.start(classifier, plan, sources, past, config), plan, sources, config)
    child, kept = plan.finish(state.classifier, state.memory, sources) if plan.finish else (state.classifier, {})
    balance_added_classes(child, sources)
    return Learned(child.eval(), {**past, **{name: part for name, part in kept.items() if part}})
