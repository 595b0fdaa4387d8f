"""`TrainState`: everything a run is, and how it goes to disk and back: aside, flushed, checked, renamed."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from taskgraft import pytree
from taskgraft.models.classifier import Classifier
from taskgraft.results.files import digest, flush, write_json
from taskgraft.types import Memory

KEEP = 2  # checkpoints: the newest, and the one before it should the newest turn out damaged
PARTS = ("model", "optimizer", "memory")
BEST = "best.safetensors"


@dataclass(frozen=True)
class TrainState:
    """A run between two steps. Randomness is derived from `seed` and `step`, so nothing else is needed."""

    seed: int
    step: int
    classifier: Classifier
    optimizer: torch.optim.Optimizer
    memory: Memory


def tensors(state: TrainState) -> list[Tensor]:
    """What a state holds before its first step; the tensors themselves, no copies."""
    return [*state.classifier.state_dict().values(), *dict(pytree.flatten(state.memory)).values()]


def save(folder: Path, state: TrainState, best: Path | None = None) -> Path:
    """Write a checkpoint `folder/step-N`; it appears whole or not at all. Older ones go once it is there.

    `best`, where there is such a file, holds the weights of the best step so far: they are a part of it.
    """
    final = folder / f"step-{state.step:09d}"
    aside = folder / f".step-{state.step:09d}.{os.getpid()}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    parts = {
        "model": pytree.state(state.classifier),
        "optimizer": _pack(state.optimizer),
        "memory": dict(pytree.flatten(state.memory)),
    }
    for name, tensors in parts.items():
        path = aside / f"{name}.safetensors"
        save_file({key: value.contiguous() for key, value in tensors.items()}, path)
        flush(path)
    if best and best.exists():
        _linked(best, aside / BEST)
    sums = {path.stem: digest(path) for path in sorted(aside.iterdir())}
    resting = [key for key, value in parts["memory"].items() if value.device.type == "cpu"]
    manifest = {"step": state.step, "seed": state.seed, "sha256": sums, "cpu": resting}
    write_json(aside / "manifest.json", manifest)
    flush(aside)
    if final.exists():
        _remove(final)
    os.replace(aside, final)
    flush(folder)
    for old in checkpoints(folder)[KEEP:]:
        _remove(old)
    for left in folder.glob(".*step-*"):  # of processes that were killed; the run is locked, so none lives
        shutil.rmtree(left, ignore_errors=True)
    return final


def _remove(old: Path) -> None:
    """Take a checkpoint away as it came, whole: a kill in between leaves nothing that looks like one."""
    gone = old.with_name(f".gone-{old.name}.{os.getpid()}")
    os.replace(old, gone)
    shutil.rmtree(gone, ignore_errors=True)


def put_back(checkpoint: Path, best: Path) -> None:
    """Give the best step's weights of a checkpoint their own place again: what lies there may be newer, or damaged."""
    if (checkpoint / BEST).exists():
        best.unlink(missing_ok=True)
        _linked(checkpoint / BEST, best)


def _linked(source: Path, place: Path) -> None:
    """A second name for a file; a copy where the disk knows no such thing."""
    try:
        os.link(source, place)
    except OSError:
        shutil.copyfile(source, place)
        flush(place)


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders, newest first; leftovers of interrupted writes are not among them."""
    return sorted(folder.glob("step-*"), reverse=True)


def newest(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose digests verify, and a line for each one that did not."""
    damaged = []
    for path in checkpoints(folder):
        reason = _damage(path)
        if reason is None:
            return path, damaged
        damaged.append(f"checkpoint {path.name} is damaged ({reason}); trying the one before")
    return None, damaged


def restore(path: Path, state: TrainState) -> TrainState:
    """Load a verified checkpoint into a prepared state of the same run, whose memory may still be empty."""
    device = next(state.classifier.parameters()).device
    state.classifier.load_state_dict(_read(path / "model.safetensors"), strict=True)
    _unpack(state.optimizer, _read(path / "optimizer.safetensors"))
    manifest = json.loads((path / "manifest.json").read_text())
    memory = _read(path / "memory.safetensors")
    params = dict(state.classifier.named_parameters())
    placed = {
        key: _laid_out(value if key in manifest["cpu"] else value.to(device), params.get(key.rsplit("/", 1)[-1]))
        for key, value in memory.items()
    }
    return TrainState(manifest["seed"], manifest["step"], state.classifier, state.optimizer, pytree.unflatten(placed))


def _damage(path: Path) -> str | None:
    try:
        sums: dict[str, str] = json.loads((path / "manifest.json").read_text())["sha256"]
        wrong = [name for name in sorted({*PARTS, *sums}) if digest(path / f"{name}.safetensors") != sums[name]]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        return f"{type(error).__name__}: {error}"
    return f"{wrong[0]}.safetensors does not match its digest" if wrong else None


def _read(path: Path) -> dict[str, Tensor]:
    # cloned: a mapped file may lie unaligned in memory, and vector kernels give other bits there
    return {key: value.clone() for key, value in load_file(path).items()}


def _pack(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    packed: dict[str, Tensor] = {}
    for row, entries in optimizer.state_dict()["state"].items():
        for key, value in entries.items():
            if value is not None:
                packed[f"{row}/{key}"] = torch.as_tensor(value).detach().clone()
    return packed


def _unpack(optimizer: torch.optim.Optimizer, packed: dict[str, Tensor]) -> None:
    whole: dict[str, Any] = optimizer.state_dict()
    params = [value for group in optimizer.param_groups for value in group["params"]]
    entries: dict[int, dict[str, Tensor]] = {}
    for path, value in packed.items():
        row, key = path.split("/")
        entries.setdefault(int(row), {})[key] = _laid_out(value, params[int(row)])
    optimizer.load_state_dict({**whole, "state": entries})


def _laid_out(value: Tensor, like: Tensor | None) -> Tensor:
    """A value in the memory layout of its parameter: fused optimizers and penalties walk both side by side."""
    if like is None or value.shape != like.shape or value.stride() == like.stride():
        return value
    return torch.empty_like(like, device=value.device, requires_grad=False).copy_(value)
