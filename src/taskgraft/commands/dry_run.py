"""What an extension would be, before it is trained: settings and reasons, parameters, memory, time, files."""

from __future__ import annotations

import time
from pathlib import Path

from taskgraft.bundle.loaders import describe_preprocessing
from taskgraft.config import TrainingConfig
from taskgraft.methods import composition
from taskgraft.methods.protocol import Method
from taskgraft.pipeline import evidence, fitting, measuring
from taskgraft.pipeline.fitting import Opened
from taskgraft.pipeline.request import Request
from taskgraft.report.formatting import format_count, format_duration, pluralize
from taskgraft.training import loop, precision, run_folder
from taskgraft.training.checkpoints import TrainState
from taskgraft.types import Callbacks, TrainingData

FILES = "model.safetensors, config.json, cards/, record.json, metrics.jsonl, predictions.npz, report.html, README.md"
TIMED = 3  # steps
STATES = {"new": "would be made", "begun": "holds this run, unfinished: --resume goes on", "done": "holds it, finished"}
MIB = 2**20


def outlook(request: Request, out: Path, *, callbacks: Callbacks = Callbacks()) -> list[str]:  # noqa: B008 - immutable
    """The lines of `extend --dry-run`. Opens and checks everything, takes some steps on a copy, writes nothing.

    Raises TaskgraftError for whatever `extend` refuses while it opens and checks.
    """
    run_folder.suited(out, request.sources())
    opened = fitting.open_all(request, None, callbacks)
    state = run_folder.examine(out, fitting.settings_of(opened), resume=True)
    new = opened.found.new
    assert new.train is not None
    assert new.val is not None
    opened = fitting.ask_parent(opened, callbacks, strict=state == "new")
    config = opened.request.config
    sources = TrainingData(new.train, opened.found.old, fitting.views_shown(opened), config.augment, config.seed)
    config, reason = precision.choose(opened.child, sources, config, None)
    begun = loop.prepare(opened.child, composition.build(opened.plan), sources, config)
    own = evidence.settings_with_reasons(config, TrainingConfig(), {"precision": reason})
    width = max(len(f"{name} = {value}") for name, value, _ in own)
    old = len(opened.found.old_val.pixels) if opened.found.old_val else 0
    return [
        f"method: {opened.request.method}",
        describe_preprocessing(opened.parent.preprocessing, opened.parent.preprocessing_source),
        f"images: {format_count(len(new.train.pixels))} to learn from, {format_count(len(new.val.pixels))} to validate on, "
        f"{format_count(old)} of old tasks to measure forgetting",
        *(f"  {f'{name} = {value}':<{width}}  {why}" for name, value, why in own),
        *_sizes(begun, opened, config),
        f"time: about {format_duration(config.steps * seconds_a_step(begun, opened, sources, config))} for "
        f"{pluralize(config.steps, 'step')} of {config.batch_size} with their validations; what the method computes comes on top",
        f"{out}: {STATES[state]}; a finished run leaves {FILES}",
        "nothing was written",
    ]


def _sizes(state: TrainState, opened: Opened, config: TrainingConfig) -> list[str]:
    """Parameters that learn and that do not, and the bytes that they and the optimizer take."""
    values = list(state.classifier.parameters())
    total = sum(value.numel() for value in values)
    learning = sum(value.numel() for value in values if value.requires_grad)
    before = sum(value.numel() for value in opened.parent.classifier.parameters())
    moments = 2 if config.optimizer == "adamw" else 1
    held = 4 * (total + (1 + moments) * learning)
    return [
        f"parameters: {format_count(total)}, of which {format_count(learning)} learn and {format_count(total - learning)} are frozen; "
        f"the parent has {format_count(before)}",
        f"memory: {held / MIB:,.0f} MiB for weights, gradients and optimizer, beside activations and what the method "
        "remembers",
    ]


def seconds_a_step(state: TrainState, opened: Opened, sources: TrainingData, config: TrainingConfig) -> float:
    """What a step takes here, its share of an evaluation included; what a method computes beside the loss is not."""
    begun = time.perf_counter()
    measuring.predictions(state.classifier, opened.found)
    looking = time.perf_counter() - begun
    state, _ = loop.advance(state, Method(), sources, config)  # the first one also warms up
    begun = time.perf_counter()
    for _ in range(TIMED):
        state, _ = loop.advance(state, Method(), sources, config)
    return (time.perf_counter() - begun) / TIMED + looking / config.eval_every
