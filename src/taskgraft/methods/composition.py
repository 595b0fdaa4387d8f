"""From a plan, the settings of several methods by name, to one method; and what a plan says as a whole."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

import numpy as np

from taskgraft.config import TrainingConfig
from taskgraft.errors import InputError
from taskgraft.methods.notation import parse
from taskgraft.methods.presets import BASELINE_LABEL
from taskgraft.methods.protocol import Method, MethodLike, Plan
from taskgraft.models.classifier import Classifier
from taskgraft.types import Batch, Memory, Params, Quadratic, Step, Terms, TrainingData, Update

T = TypeVar("T")


def build(method: Plan | MethodLike) -> Method:
    """Return the one method that a plan or a notation describes."""
    plan = method if isinstance(method, dict) else parse(method)
    return compose({name: settings.build() for name, settings in plan.items()})


def compose(methods: Mapping[str, Method]) -> Method:
    """Combine named methods into one.

    `adapt`, `mix` and `finish` run in order, loss terms and penalties are merged, and each method has a memory of its
    own under its name. `compose({})` is fine-tuning; `compose({"m": m})` does what `m` does.

    Raises:
        InputError: Two methods add a term of the same name (when training calls them).
    """

    def adapt(classifier: Classifier, sources: TrainingData) -> Classifier:
        for method in methods.values():
            classifier = method.adapt(classifier, sources) if method.adapt else classifier
        return classifier

    def remember(classifier: Classifier, sources: TrainingData, past: Memory) -> Memory:
        return {
            name: method.remember(classifier, sources, past.get(name, {}))
            for name, method in methods.items()
            if method.remember
        }

    def mix(batch: Batch, memory: Memory, rng: np.random.Generator) -> Batch:
        for name, method in methods.items():
            batch = method.mix(batch, memory.get(name, {}), rng) if method.mix else batch
        return batch

    def response(step: Step, memory: Memory) -> Terms:
        return _merge(
            method.response(step, memory.get(name, {})) for name, method in methods.items() if method.response
        )

    def weight(params: Params, memory: Memory) -> dict[str, Quadratic]:
        return _merge(method.weight(params, memory.get(name, {})) for name, method in methods.items() if method.weight)

    def project(movement: Params, memory: Memory) -> Params:
        for name, method in methods.items():
            movement = method.project(movement, memory.get(name, {})) if method.project else movement
        return movement

    def observe(memory: Memory, update: Update) -> Memory:
        observed = {
            name: method.observe(memory.get(name, {}), update) for name, method in methods.items() if method.observe
        }
        return {**memory, **observed}

    def finish(classifier: Classifier, memory: Memory, sources: TrainingData) -> tuple[Classifier, Memory]:
        memories: Memory = {}
        for name, method in methods.items():
            if method.finish:
                classifier, memories[name] = method.finish(classifier, memory.get(name, {}), sources)
        return classifier, memories

    functions = {
        "adapt": adapt, "remember": remember, "mix": mix, "response": response,
        "weight": weight, "project": project, "observe": observe, "finish": finish,
    }  # fmt: skip
    used = {slot for method in methods.values() for slot, function in method._asdict().items() if function}
    return Method(**{slot: function for slot, function in functions.items() if slot in used})


def acting(plan: Plan) -> str:
    """Return the names of the methods that act, joined by +; "baseline" where none does.

    A method whose strength is 0 does not act, and with all at 0 there is plain fine-tuning.
    """
    return " + ".join(name for name, settings in plan.items() if settings.acts) or BASELINE_LABEL


def has_teacher(plan: Plan) -> bool:
    """Return whether a method learns from a teacher's answers, so that images need no labels."""
    return any(settings.traits.distills for settings in plan.values())


def requires(plan: Plan, config: TrainingConfig) -> str | None:
    """Return why a plan cannot run under the training settings and what to do; None where it can."""
    return next(filter(None, (settings.requires(config) for settings in plan.values())), None)


def notes(plan: Plan, finished: Memory, past: Memory, has_old: bool) -> list[str]:
    """Return the sentences for a run's record.

    Args:
        plan: The methods of the run.
        finished: What the run's `finish` returned, by method.
        past: What the parent's bundle carries, by method.
        has_old: Whether a sample of old images was given.
    """
    lines = (settings.note(finished.get(name, {}), past.get(name, {}), has_old) for name, settings in plan.items())
    return [line for line in lines if line]


def interpolations(plan: Plan) -> dict[float, Plan]:
    """Return the plans that share one training and differ in how far the child goes back, by weight; mostly empty."""
    return {
        weight: plan | {name: fixed}
        for name, settings in plan.items()
        for weight, fixed in settings.interpolations().items()
    }


def interpolated(
    plan: Plan, classifier: Classifier, memory: Memory, sources: TrainingData
) -> Iterator[tuple[float, Classifier]]:
    """Yield each weight of `interpolations` and the child at it, without training.

    Args:
        plan: The methods that trained the child.
        classifier: The child as training left it; not changed.
        memory: The run's memory, by method.
        sources: The images and the seed of the run.
    """
    for name, settings in plan.items():
        for weight, fixed in settings.interpolations().items():
            finish = fixed.build().finish
            assert finish
            yield weight, finish(copy.deepcopy(classifier), memory[name], sources)[0]


def _merge(groups: Iterable[dict[str, T]]) -> dict[str, T]:
    merged: dict[str, T] = {}
    for terms in groups:
        duplicates = merged.keys() & terms.keys()
        if duplicates:
            raise InputError(f"two methods both add the term {duplicates.pop()!r}; name each method once")
        merged.update(terms)
    return merged
