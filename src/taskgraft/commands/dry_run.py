"""`taskgraft extend --dry-run`: settings with reasons, parameters, memory, time and files, without training."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import torch

from taskgraft.bundle.format import Bundle, compute_digest
from taskgraft.bundle.loaders import describe_preprocessing
from taskgraft.commands.extend import plan_one_backbone
from taskgraft.config import TrainingConfig
from taskgraft.methods import composition
from taskgraft.methods.protocol import Method
from taskgraft.pipeline import measuring, recording
from taskgraft.pipeline.compression import open_compression
from taskgraft.pipeline.opening import Opened, open_request
from taskgraft.pipeline.parent_check import check_parent
from taskgraft.pipeline.request import CompressionRequest, Request
from taskgraft.report import formatting as fmt
from taskgraft.training import loop, precision, run_folder
from taskgraft.training.checkpoints import TrainState
from taskgraft.training.compilation import choose_compilation
from taskgraft.types import Callbacks, Teacher, TrainingData

FILES = "model.safetensors, config.json, cards/, record.json, metrics.jsonl, predictions.npz, report.html, README.md"
TIMED_STEPS = 3
STATES = {
    "new": "would be created",
    "begun": "holds this run, unfinished: continue it with --resume",
    "done": "holds this run, finished",
}
MIB = 2**20


def describe_run(
    request: Request,
    out: Path,
    *,
    one_backbone: bool = False,
    callbacks: Callbacks = Callbacks(),  # noqa: B008 - immutable
) -> list[str]:
    """Describe an extension without carrying it out. Opens and checks everything, takes some steps, writes nothing.

    Args:
        request: The extension or compression.
        out: Its run folder.
        one_backbone: Whether the child of the extension is to be compressed.
        callbacks: Progress callbacks.

    Returns:
        Lines to print.

    Raises:
        TaskgraftError: Whatever `extend` refuses while it opens and checks.
    """
    if not one_backbone:
        return [*_describe_one(request, out, callbacks)[0], "nothing was written"]
    first, _ = plan_one_backbone(request, request.parent)
    teaching, child = _describe_one(first, out / "teacher", callbacks)
    # the child is all but untrained: its answers are neither checked nor told
    _, last = plan_one_backbone(replace(request, check_parent=False), child)
    return [
        "first, the extension:", *teaching, "then its child teaches one plain backbone:",
        *_describe_one(last, out, Callbacks())[0], "nothing was written",
    ]  # fmt: skip


def _describe_one(request: Request, out: Path, callbacks: Callbacks) -> tuple[list[str], Bundle]:
    """Describe one run; also returns its child after a few steps."""
    run_folder.check_location(out, request.list_sources(), request.list_models())
    opened = (
        open_compression(request, None, callbacks) if isinstance(request, CompressionRequest)
        else open_request(request, None, callbacks)
    )  # fmt: skip
    state = run_folder.inspect(out, opened.list_settings(), resume=True)
    images = opened.images.new
    assert images.train is not None
    assert images.val is not None
    opened = check_parent(opened, None, callbacks, strict=state == "new")
    config = opened.config
    sources = TrainingData(images.train, opened.images.old, opened.views, config.augment, config.seed)
    config, reason = precision.choose_precision(opened.child, sources, config, None)
    config, compiled = choose_compilation(opened.child, sources, config)
    blank = loop.prepare(opened.child, composition.build(opened.plan), sources, config)
    found = {"precision": reason, "compile": compiled, "steps": opened.describe_epochs()}
    reasons = {name: why for name, why in found.items() if why}
    settings = recording.explain_settings(config, request.default_config, reasons)
    width = max(len(f"{name} = {value}") for name, value, _ in settings)
    old = len(opened.images.old_val.pixels) if opened.images.old_val else 0
    step = measure_step_seconds(blank, opened, sources, config)
    left_out = "without what the method computes besides the loss"
    if opened.teacher:
        step += _measure_answer(opened.teacher, opened, config)
        left_out = "and the teacher's answers"
    lines = [
        f"method: {opened.method}",
        describe_preprocessing(opened.parent.preprocessing, opened.parent.preprocessing_source),
        f"images: {len(images.train.pixels):,} to train on, {len(images.val.pixels):,} to "
        f"validate on, {old:,} of old tasks to measure forgetting",
        *(f"  {f'{name} = {value}':<{width}}  {why}" for name, value, why in settings),
        *_describe_size(blank, opened, config),
        f"time: about {fmt.duration(config.steps * step)} for {fmt.pluralize(config.steps, 'step')} of "
        f"{config.batch_size} images and their evaluations, {left_out}",
        f"{out}: {STATES[state]}; a finished run contains {FILES}",
    ]
    child = replace(opened.parent, classifier=blank.classifier, memory={}, folder=None)
    return lines, replace(child, digest=compute_digest(child))


def measure_step_seconds(state: TrainState, opened: Opened, sources: TrainingData, config: TrainingConfig) -> float:
    """Measure how long a training step takes here, without what a method computes besides the loss.

    Args:
        state: A prepared state, which is trained on.
        opened: An opened extension.
        sources: Training images.
        config: Training settings.

    Returns:
        Seconds, with a step's part of an evaluation.
    """
    start = time.perf_counter()
    measuring.predict_validation(state.classifier, opened.images)
    evaluation = time.perf_counter() - start
    state, _ = loop.train_step(state, Method(), sources, config)  # the first one also sets things up
    start = time.perf_counter()
    for _ in range(TIMED_STEPS):
        state, _ = loop.train_step(state, Method(), sources, config)
    return (time.perf_counter() - start) / TIMED_STEPS + evaluation / config.eval_every


def _measure_answer(teacher: Teacher, opened: Opened, config: TrainingConfig) -> float:
    """Measure how many seconds a live teacher takes for a batch."""
    size = opened.parent.preprocessing.size
    device = next(opened.child.parameters()).device
    images = torch.zeros(config.batch_size, opened.parent.preprocessing.channels, size, size, device=device)

    def answer() -> None:
        next(iter(teacher(images).values())).sum().item()  # waits for a GPU

    answer()  # the first one also sets things up
    start = time.perf_counter()
    for _ in range(TIMED_STEPS):
        answer()
    return (time.perf_counter() - start) / TIMED_STEPS


def _describe_size(state: TrainState, opened: Opened, config: TrainingConfig) -> list[str]:
    values = list(state.classifier.parameters())
    total = sum(value.numel() for value in values)
    trained = sum(value.numel() for value in values if value.requires_grad)
    parent = sum(value.numel() for value in opened.parent.classifier.parameters())
    moments = 2 if config.optimizer == "adamw" else 1
    size = 4 * (total + (1 + moments) * trained)
    return [
        f"parameters: {total:,}, of which {trained:,} are trained and "
        f"{total - trained:,} frozen; the parent has {parent:,}",
        f"memory: {size / MIB:,.0f} MiB for weights, gradients and optimizer, plus activations and what the method "
        "stores",
    ]
