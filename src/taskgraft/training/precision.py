"""Which arithmetic is fastest here: a few steps of each candidate, timed once per machine and model."""

from __future__ import annotations

import copy
import json
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from taskgraft import losses
from taskgraft.config import Precision, Softmax, TrainingConfig
from taskgraft.data import build_batch
from taskgraft.models.classifier import Classifier
from taskgraft.results.files import fingerprint, write_json
from taskgraft.types import Batch, TrainingData

CANDIDATES: tuple[Precision, ...] = ("fp32", "fp32-channels-last", "bf16")
MARGIN = 1.1  # a faster candidate must win by this much, so that noise does not decide
ROUNDS = 3  # after one that sets things up
SLOW = 2.0  # a candidate whose best turn takes so many times another's is not given a further one
SETUP = 0.5  # seconds that a first turn may take on top: kernels are made then, which tells nothing
PATIENCE = 5.0  # seconds that all turns after the first of each may take together


class Trial(NamedTuple):
    """Images per second of the candidates that were timed, and why others were not, or not again."""

    lrs: dict[Precision, float]
    notes: dict[Precision, str]


def choose(
    classifier: Classifier, sources: TrainingData, config: TrainingConfig, folder: Path | None
) -> tuple[TrainingConfig, str]:
    """The run with "auto" replaced by the fastest candidate, and the reason.

    The choice is kept in `folder` for this machine, model, size and batch: timing twice could choose twice, and
    the same seed should give the same run.
    """
    if config.precision != "auto":
        return config, "set explicitly"
    key = _key(classifier, sources, config)
    store = folder / "precision.json" if folder else None
    known = _read(store)
    if key in known:
        return replace(config, precision=known[key][0]), known[key][1]
    lrs, notes = _timed(classifier, sources, config)
    best: Precision = next(iter(lrs))
    for candidate in lrs:
        if lrs[candidate] > lrs[best] * MARGIN:
            best = candidate
    told = [", ".join(f"{name} {lr:.0f} images/s" for name, lr in lrs.items())]
    reason = "; ".join(["measured here: " + told[0], *(f"{name} {note}" for name, note in notes.items())])
    if store:
        write_json(store, {**known, key: [best, reason]})
    return replace(config, precision=best), reason


def _timed(classifier: Classifier, sources: TrainingData, config: TrainingConfig) -> Trial:
    """Forward and backward under each candidate that the device computes in hardware."""
    batch = build_batch(sources, 0, config.batch_size)
    device = next(classifier.parameters()).device
    notes: dict[Precision, str] = {} if computes_bf16(device) else {"bf16": "not tried: this device only emulates it"}
    trials: dict[Precision, Classifier] = {}
    for name in CANDIDATES:
        if name in notes:
            continue
        trials[name] = copy.deepcopy(classifier).train()
        if name != "fp32":
            trials[name].to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    turns: dict[Precision, Callable[[], float]] = {}
    for name, trial in trials.items():
        turns[name] = partial(_seconds, trial, batch, name, config.softmax)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        seconds, dropped = in_turns(turns)
    return Trial({name: config.batch_size / taken for name, taken in seconds.items()}, {**notes, **dropped})


def in_turns(
    turns: Mapping[Precision, Callable[[], float]],
) -> tuple[dict[Precision, float], dict[Precision, str]]:
    """The best turn of each candidate in seconds, and why one got no further turn. A turn tells what it took.

    Turn by turn, since others may be using the machine. After the first turn of each, which counts only where no
    other fits in, all together take at most PATIENCE.
    """
    taken: dict[Precision, list[float]] = {}
    dropped: dict[Precision, str] = {}
    spent = 0.0
    for number in range(ROUNDS + 1):
        live: list[Precision] = [name for name in turns if name not in dropped]
        if number and (len(live) == 1 or spent + sum(taken[name][-1] for name in live) > PATIENCE):
            break
        for name in live:
            taken.setdefault(name, []).append(turns[name]())
            spent += taken[name][-1] if number else 0.0
            own, others = min(taken[name]), [min(taken[other]) for other in live if other != name and other in taken]
            if others and own > SLOW * min(others) + (0.0 if number else SETUP):
                dropped[name] = f"dropped after a turn of {own:.2g} s, where another took {min(others):.2g} s"
    return {name: min(found[1:] or found) for name, found in taken.items()}, dropped


def computes_bf16(device: torch.device) -> bool:
    """Whether a device has units for bf16; emulated, it takes many times fp32's time.

    True where torch does not tell: one turn then shows it.
    """
    try:
        if device.type == "cuda":
            return torch.cuda.is_bf16_supported(including_emulation=False)
        supported = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
        units = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    except (AttributeError, RuntimeError, TypeError):
        return True
    return supported and (units or platform.machine() not in ("x86_64", "AMD64"))


def _seconds(trial: Classifier, batch: Batch, name: Precision, softmax: Softmax) -> float:
    device = next(trial.parameters()).device
    images = batch.images.to(device)
    images = images.contiguous() if name == "fp32" else images
    labels = {task: target.to(device) for task, target in batch.labels.items()}
    begin = time.perf_counter()
    with torch.autocast(device.type, torch.bfloat16, enabled=name == "bf16"):
        outputs = trial(images)
    losses.cross_entropy(outputs, labels, softmax).backward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def place(device: torch.device) -> dict[str, str]:
    """What decides the last bits of sums beside versions: the processor, and how many threads share the work."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {"processor": name, "threads": str(torch.get_num_threads())}


def _key(classifier: Classifier, sources: TrainingData, config: TrainingConfig) -> str:
    here = place(next(classifier.parameters()).device)
    size = sum(value.numel() for value in classifier.parameters())
    shape = tuple(sources.new.pixels.shape[1:])
    parts = (
        here["processor"],
        here["threads"],
        torch.__version__,
        type(classifier.backbone).__name__,
        size,
        shape,
        config.batch_size,
        computes_bf16(next(classifier.parameters()).device),
    )
    return fingerprint(map(str, parts))[:16]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _read(store: Path | None) -> dict[str, list]:
    try:
        return json.loads(store.read_text()) if store else {}
    except (OSError, ValueError):
        return {}
