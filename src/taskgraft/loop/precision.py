"""Which arithmetic is fastest here: a few steps of each candidate, timed once per machine and model."""

from __future__ import annotations

import copy
import json
import platform
import time
from dataclasses import replace
from pathlib import Path

import torch

from taskgraft import losses
from taskgraft.classifier import Classifier
from taskgraft.data import batch_at
from taskgraft.record import fingerprint, write_json
from taskgraft.settings import Precision, Run, Softmax
from taskgraft.types import Batch, Sources

CANDIDATES: tuple[Precision, ...] = ("fp32", "fp32-channels-last", "bf16")
MARGIN = 1.1  # a faster candidate must win by this much, so that noise does not decide
ROUNDS = 3


def choose(classifier: Classifier, sources: Sources, run: Run, folder: Path | None) -> tuple[Run, str]:
    """The run with "auto" replaced by the fastest candidate, and the reason.

    The choice is kept in `folder` for this machine, model, size and batch: timing twice could choose twice, and
    the same seed should give the same run.
    """
    if run.precision != "auto":
        return run, "as asked"
    key = _key(classifier, sources, run)
    store = folder / "precision.json" if folder else None
    known = _read(store)
    if key in known:
        return replace(run, precision=known[key][0]), known[key][1]
    rates = _rates(classifier, sources, run)
    best: Precision = "fp32"
    for candidate in CANDIDATES[1:]:
        if rates[candidate] > rates[best] * MARGIN:
            best = candidate
    reason = "measured here: " + ", ".join(f"{name} {rate:.0f} images/s" for name, rate in rates.items())
    if store:
        write_json(store, {**known, key: [best, reason]})
    return replace(run, precision=best), reason


def _rates(classifier: Classifier, sources: Sources, run: Run) -> dict[Precision, float]:
    """Images per second of forward and backward for each candidate.

    Turn by turn, and the best turn of each: others may be using the machine.
    """
    batch = batch_at(sources, 0, run.batch)
    trials: dict[Precision, Classifier] = {name: copy.deepcopy(classifier).train() for name in CANDIDATES}
    for name, trial in trials.items():
        if name != "fp32":
            trial.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    seconds: dict[Precision, list[float]] = {name: [] for name in CANDIDATES}
    device = next(classifier.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for _ in range(ROUNDS + 1):
            for name, trial in trials.items():
                seconds[name].append(_seconds(trial, batch, name, run.softmax))
    return {name: run.batch / min(taken[1:]) for name, taken in seconds.items()}


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


def _key(classifier: Classifier, sources: Sources, run: Run) -> str:
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
        run.batch,
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
