"""The protocol: seven optional functions. An empty slot is None, so nobody pays for what a method does not do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from taskgraft.errors import InputError
from taskgraft.models.classifier import Classifier
from taskgraft.types import Batch, Memory, Params, Quadratic, Step, Terms, TrainingData, Update

T = TypeVar("T")
Adapt = Callable[[Classifier, TrainingData], Classifier]
Remember = Callable[[Classifier, TrainingData, Memory], Memory]
Mix = Callable[[Batch, Memory, np.random.Generator], Batch]
Response = Callable[[Step, Memory], Terms]
Weight = Callable[[Params, Memory], dict[str, Quadratic]]
Observe = Callable[[Memory, Update], Memory]
Finish = Callable[[Classifier, Memory, TrainingData], tuple[Classifier, Memory]]


class Method(NamedTuple):
    """How forgetting is prevented: in data space, function space or weight space; before, during, after."""

    adapt: Adapt | None = None  # once, before the optimizer exists; gets a copy (taps, branch, ladder, lora, frozen)
    remember: Remember | None = None  # once; (classifier, sources, what the parent's bundle kept) -> memory
    mix: Mix | None = None  # each step: data space (replay)
    response: Response | None = None  # each step: function space, named scalars (distill)
    weight: Weight | None = None  # each step: weight space, named quadratic penalties (l2sp, ewc, mas, si)
    observe: Observe | None = None  # after each optimizer step (si)
    finish: Finish | None = None  # once; -> classifier and what the next extension needs (lora, wise, ewc)


class Settings(Protocol):
    """A method's hyper-parameters: a frozen dataclass that builds the method."""

    def build(self) -> Method:
        """The seven slots under these settings."""
        ...


def compose(parts: Mapping[str, Method]) -> Method:
    """Join named methods: adapt, mix and finish run in order, terms and penalties are gathered, each keeps its
    own memory under its name. `compose({})` is fine-tuning; `compose({"m": m})` does what `m` does.
    """

    def adapt(classifier: Classifier, sources: TrainingData) -> Classifier:
        for part in parts.values():
            classifier = part.adapt(classifier, sources) if part.adapt else classifier
        return classifier

    def remember(classifier: Classifier, sources: TrainingData, past: Memory) -> Memory:
        return {
            name: part.remember(classifier, sources, past.get(name, {}))
            for name, part in parts.items()
            if part.remember
        }

    def mix(batch: Batch, memory: Memory, rng: np.random.Generator) -> Batch:
        for name, part in parts.items():
            batch = part.mix(batch, memory.get(name, {}), rng) if part.mix else batch
        return batch

    def response(step: Step, memory: Memory) -> Terms:
        return _gather(part.response(step, memory.get(name, {})) for name, part in parts.items() if part.response)

    def weight(params: Params, memory: Memory) -> dict[str, Quadratic]:
        return _gather(part.weight(params, memory.get(name, {})) for name, part in parts.items() if part.weight)

    def observe(memory: Memory, move: Update) -> Memory:
        watching = {name: part.observe(memory.get(name, {}), move) for name, part in parts.items() if part.observe}
        return {**memory, **watching}

    def finish(classifier: Classifier, memory: Memory, sources: TrainingData) -> tuple[Classifier, Memory]:
        kept: Memory = {}
        for name, part in parts.items():
            if part.finish:
                classifier, kept[name] = part.finish(classifier, memory.get(name, {}), sources)
        return classifier, kept

    slots = {
        "adapt": adapt, "remember": remember, "mix": mix, "response": response,
        "weight": weight, "observe": observe, "finish": finish,
    }  # fmt: skip
    used = {slot for part in parts.values() for slot, function in part._asdict().items() if function}
    return Method(**{slot: function for slot, function in slots.items() if slot in used})


def _gather(found: Iterable[dict[str, T]]) -> dict[str, T]:
    gathered: dict[str, T] = {}
    for terms in found:
        twice = gathered.keys() & terms.keys()
        if twice:
            raise InputError(f"two methods both add the term {twice.pop()!r}; name each method once")
        gathered.update(terms)
    return gathered
