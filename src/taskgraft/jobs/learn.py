"""The same training from Python, in memory: any module with a final linear layer, any tensors; nothing is written."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from taskgraft import methods
from taskgraft.classifier import Classifier
from taskgraft.features import balance
from taskgraft.loop import steps
from taskgraft.method import Method
from taskgraft.settings import METHOD, Run, validate
from taskgraft.types import Images, Sources


class Learned(NamedTuple):
    """The trained classifier, and the memory that the next task's training is to be given."""

    classifier: Classifier
    memory: dict[str, Any]


def learn(
    classifier: Classifier,
    images: Images,
    *,
    method: str | Method = METHOD,
    run: Run = Run(),  # noqa: B008 - immutable
    memory: Mapping[str, Any] | None = None,
    old: Images | None = None,
    score: Callable[[Classifier], float] | None = None,
) -> Learned:
    """Train the newest task of a classifier on labelled images; the older tasks are kept as `method` says.

    `wrap` makes a classifier of a module and `grow` adds a task to it; the classifier given is not changed. `memory` is
    what the last `learn` returned, `old` a sample of old images, `score` a validation Score for methods that choose by
    one (wise). Precision "auto" is fp32 here; the child is in eval mode. Raises Problem for settings that are not legal
    or a method that lacks what it needs.
    """
    plan = methods.build(methods.parse(method)) if isinstance(method, str) else method
    sources = Sources(images, old, run.views, run.augment, run.seed, score)
    run = replace(validate(run), precision="fp32" if run.precision == "auto" else run.precision)
    past = dict(memory or {})
    classifier = copy.deepcopy(classifier)
    classifier.softmax = run.softmax
    state = steps.fit(steps.start(classifier, plan, sources, past, run), plan, sources, run)
    child, kept = plan.finish(state.classifier, state.memory, sources) if plan.finish else (state.classifier, {})
    balance(child, sources)
    return Learned(child.eval(), {**past, **{name: part for name, part in kept.items() if part}})
