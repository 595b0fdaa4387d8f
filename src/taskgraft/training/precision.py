"""The fastest precision and memory format: a few steps of each, timed once per machine and model."""

from __future__ import annotations

import copy
import json
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from taskgraft import losses
from taskgraft.config import Precision, Softmax, TrainingConfig
from taskgraft.data import build_batch
from taskgraft.models.classifier import Classifier, set_frozen_to_eval
from taskgraft.results.files import fingerprint, write_json
from taskgraft.types import Batch, Outputs, TrainingData

CANDIDATES: tuple[Precision, ...] = ("fp32", "fp32-channels-last", "bf16")
MARGIN = 1.1  # factor by which a candidate must be faster, so that noise does not decide
MARGIN_BF16 = 1.0  # of bf16 on a GPU, which saves memory too: it need not be slower
ROUNDS = 3  # after a warm-up
SLOW = 2.0  # a candidate whose best round takes this many times another's is dropped
SETUP = 0.5  # seconds that the warm-up may take on top: kernels are compiled then
MAX_SECONDS = 5.0  # of all rounds after the warm-up together


def choose_precision(
    classifier: Classifier, sources: TrainingData, config: TrainingConfig, cache: Path | None
) -> tuple[TrainingConfig, str]:
    """Replace precision "auto" by the fastest candidate.

    The choice is stored for this machine, model, image size and batch size: a second measurement could end differently,
    and the same seed should give the same run.

    Args:
        classifier: The classifier to train.
        sources: Training images.
        config: Training settings.
        cache: Folder in which the choice is stored; None = not stored.

    Returns:
        The settings with their precision, and the reason for it.
    """
    if config.precision != "auto":
        return config, "set explicitly"
    key = _build_key(classifier, sources, config)
    file = cache / "precision.json" if cache else None
    try:
        choices: dict[str, list] = json.loads(file.read_text()) if file else {}
    except (OSError, ValueError):
        choices = {}
    if key not in choices:
        speeds, notes = _benchmark(classifier, sources, config)
        best = next(iter(speeds))
        is_gpu = next(classifier.parameters()).device.type == "cuda"
        for candidate in speeds:
            if speeds[candidate] > speeds[best] * (MARGIN_BF16 if is_gpu and candidate == "bf16" else MARGIN):
                best = candidate
        measured = ", ".join(f"{name} {speed:.0f} images/s" for name, speed in speeds.items())
        reason = "; ".join([f"measured here: {measured}", *(f"{name} {note}" for name, note in notes.items())])
        choices[key] = [best, reason]
        if file:
            write_json(file, choices)
    precision, reason = choices[key]
    return replace(config, precision=precision), reason


def time_rounds(
    candidates: Mapping[Precision, Callable[[], float]],
) -> tuple[dict[Precision, float], dict[Precision, str]]:
    """Time candidates in turns, since other programs may be using the machine.

    Args:
        candidates: For each candidate a function that takes one step and returns its seconds. Its first call is a
            warm-up, which counts only where no other call follows.

    Returns:
        Best seconds of each candidate, and why candidates were dropped.
    """
    seconds: dict[Precision, list[float]] = {}
    dropped: dict[Precision, str] = {}
    elapsed = 0.0
    for index in range(ROUNDS + 1):
        active: list[Precision] = [name for name in candidates if name not in dropped]
        if index and (len(active) == 1 or elapsed + sum(seconds[name][-1] for name in active) > MAX_SECONDS):
            break
        for name in active:
            seconds.setdefault(name, []).append(candidates[name]())
            elapsed += seconds[name][-1] if index else 0.0
            others = [min(seconds[other]) for other in active if other != name and other in seconds]
            if others and min(seconds[name]) > SLOW * min(others) + (0.0 if index else SETUP):
                dropped[name] = (
                    f"dropped after a step of {min(seconds[name]):.2g} s, where another took {min(others):.2g} s"
                )
    return {name: min(values[1:] or values) for name, values in seconds.items()}, dropped


def computes_bf16(device: torch.device) -> bool:
    """Return whether a device computes bf16 natively, or torch cannot tell; emulation is much slower than fp32."""
    try:
        if device.type == "cuda":
            return torch.cuda.is_bf16_supported(including_emulation=False)
        supported = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
        units = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    except (AttributeError, RuntimeError, TypeError):
        return True
    return supported and (units or platform.machine() not in ("x86_64", "AMD64"))


def describe_hardware(device: torch.device) -> dict[str, str]:
    """Return what, besides versions, decides the last bits of sums: the processor and the number of threads."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _read_cpu_name()
    return {"processor": name, "threads": str(torch.get_num_threads())}


def _benchmark(
    classifier: Classifier, sources: TrainingData, config: TrainingConfig
) -> tuple[dict[Precision, float], dict[Precision, str]]:
    """Return the images per second of the candidates that were timed, and why others were dropped or not tried."""
    device = next(classifier.parameters()).device
    batch = build_batch(sources, 0, config.batch_size, device)
    notes: dict[Precision, str] = {} if computes_bf16(device) else {"bf16": "not tried: this device only emulates it"}
    candidates: dict[Precision, Callable[[], float]] = {
        name: partial(time_step, copy_for(classifier, name, config), batch, name, config.softmax)
        for name in CANDIDATES
        if name not in notes
    }
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        seconds, dropped = time_rounds(candidates)
    return {name: config.batch_size / best for name, best in seconds.items()}, {**notes, **dropped}


def copy_for(classifier: Classifier, name: Precision, config: TrainingConfig) -> Classifier:
    """Return a copy of a classifier to time steps with, in the memory format of a precision."""
    model = copy.deepcopy(classifier).train()
    if config.batch_size == 1:  # BatchNorm may refuse one image, which methods that freeze it allow
        set_frozen_to_eval(model, norm="frozen")
    if name != "fp32":
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return model


def time_step(model: Callable[[Tensor], Outputs], batch: Batch, name: Precision, softmax: Softmax) -> float:
    """Return the seconds of one forward and backward pass."""
    device = batch.images.device
    images = batch.images.contiguous() if name == "fp32" else batch.images
    labels = {task: target.to(device) for task, target in batch.labels.items()}
    start = time.perf_counter()
    with torch.autocast(device.type, torch.bfloat16, enabled=name == "bf16"):
        outputs = model(images)
    losses.cross_entropy(outputs, labels, softmax).backward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _build_key(classifier: Classifier, sources: TrainingData, config: TrainingConfig) -> str:
    device = next(classifier.parameters()).device
    size = sum(value.numel() for value in classifier.parameters())
    shape = tuple(sources.new.pixels.shape[1:])
    network = type(classifier.backbone).__name__
    hardware = (*describe_hardware(device).values(), torch.__version__)
    return fingerprint(map(str, (*hardware, network, size, shape, config.batch_size, computes_bf16(device))))[:16]


def _read_cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
