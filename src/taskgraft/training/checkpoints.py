"""`TrainState`, and how it is written to disk (under another name, flushed, renamed), verified and restored."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from timm.utils import ModelEmaV3
from torch import Tensor

from taskgraft import pytree
from taskgraft.models.classifier import Classifier
from taskgraft.results.files import digest, flush, write_json
from taskgraft.training.compilation import Compiler
from taskgraft.types import Memory

KEEP = 2  # checkpoints: the newest, and the one before in case the newest turns out damaged
FILES = ("model", "optimizer", "memory")
AVERAGE = "average"  # of the weights, in runs that have one
BEST = "best.safetensors"


@dataclass(frozen=True)
class TrainState:
    """A run between two steps. Random numbers are derived from `seed` and `step`, so no generator is saved."""

    seed: int
    step: int
    classifier: Classifier
    optimizer: torch.optim.Optimizer
    memory: Memory
    average: ModelEmaV3 | None = None
    compiler: Compiler | None = None

    @property
    def kept(self) -> Classifier:
        """The classifier that is evaluated, selected and published: the average of the weights, where there is one."""
        return self.classifier if self.average is None else self.average.module

    def tensors(self) -> list[Tensor]:
        """Return the tensors of classifier, average and memory, not copied."""
        average = [] if self.average is None else self.average.module.state_dict().values()
        return [*self.classifier.state_dict().values(), *average, *dict(pytree.flatten(self.memory)).values()]


def save(folder: Path, state: TrainState, best: Path | None = None) -> Path:
    """Write a checkpoint, which appears complete or not at all, and delete all but the newest `KEEP`.

    Args:
        folder: Folder of all checkpoints of a run.
        state: What to write.
        best: File with the weights of the best step so far; where it exists, it becomes part of the checkpoint.

    Returns:
        The checkpoint's folder, `folder/step-N`.
    """
    final = folder / f"step-{state.step:09d}"
    partial = folder / f".step-{state.step:09d}.{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    memory = dict(pytree.flatten(state.memory))
    contents = {"model": pytree.state(state.classifier), "optimizer": _pack(state.optimizer), "memory": memory}
    if state.average is not None:
        contents[AVERAGE] = pytree.state(state.average.module)
    for name, tensors in contents.items():
        path = partial / f"{name}.safetensors"
        save_file({key: value.contiguous() for key, value in tensors.items()}, path)
        flush(path)
    if best and best.exists():
        _link(best, partial / BEST)
    digests = {path.stem: digest(path) for path in sorted(partial.iterdir())}
    on_cpu = [key for key, value in memory.items() if value.device.type == "cpu"]
    write_json(partial / "manifest.json", {"step": state.step, "seed": state.seed, "sha256": digests, "cpu": on_cpu})
    flush(partial)
    if final.exists():
        _delete(final)
    os.replace(partial, final)
    flush(folder)
    for old in list_checkpoints(folder)[KEEP:]:
        _delete(old)
    for leftover in folder.glob(".*step-*"):  # of processes that were killed; the run is locked, so none is alive
        shutil.rmtree(leftover, ignore_errors=True)
    return final


def list_checkpoints(folder: Path) -> list[Path]:
    """List the checkpoint folders, newest first, without leftovers of interrupted writes."""
    return sorted(folder.glob("step-*"), reverse=True)


def find_newest(folder: Path) -> tuple[Path | None, list[str]]:
    """Return the newest checkpoint whose digests match, if there is one, and a message for each damaged one."""
    damaged = []
    for path in list_checkpoints(folder):
        reason = _find_damage(path)
        if reason is None:
            return path, damaged
        damaged.append(f"checkpoint {path.name} is damaged ({reason}); trying the one before")
    return None, damaged


def restore(path: Path, state: TrainState) -> TrainState:
    """Load a checkpoint that `find_newest` returned into a prepared state of the same run, which is changed in place.

    Returns:
        The state that was saved.
    """
    device = next(state.classifier.parameters()).device
    state.classifier.load_state_dict(_load(path / "model.safetensors"), strict=True)
    _unpack(state.optimizer, _load(path / "optimizer.safetensors"))
    if state.average is not None:
        state.average.module.load_state_dict(_load(path / f"{AVERAGE}.safetensors"), strict=True)
    manifest = json.loads((path / "manifest.json").read_text())
    memory = _load(path / "memory.safetensors")
    params = dict(state.classifier.named_parameters())
    memory = {
        key: _match_layout(value if key in manifest["cpu"] else value.to(device), params.get(key.rsplit("/", 1)[-1]))
        for key, value in memory.items()
    }
    return replace(state, seed=manifest["seed"], step=manifest["step"], memory=pytree.unflatten(memory))


def restore_best(path: Path, best: Path) -> None:
    """Replace the file of the best step's weights, which may be newer or damaged, by that of a checkpoint, if any."""
    if (path / BEST).exists():
        best.unlink(missing_ok=True)
        _link(path / BEST, best)


def _delete(checkpoint: Path) -> None:
    """Rename, then delete: a kill in between leaves nothing that looks like a checkpoint."""
    deleted = checkpoint.with_name(f".deleted-{checkpoint.name}.{os.getpid()}")
    os.replace(checkpoint, deleted)
    shutil.rmtree(deleted, ignore_errors=True)


def _link(source: Path, target: Path) -> None:
    """Hard-link a file; copy it where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        flush(target)


def _find_damage(path: Path) -> str | None:
    try:
        digests: dict[str, str] = json.loads((path / "manifest.json").read_text())["sha256"]
        wrong = [name for name in sorted({*FILES, *digests}) if digest(path / f"{name}.safetensors") != digests[name]]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        return f"{type(error).__name__}: {error}"
    return f"{wrong[0]}.safetensors does not match its digest" if wrong else None


def _load(path: Path) -> dict[str, Tensor]:
    # cloned: a mapped file may lie unaligned in memory, and vector kernels give other bits there
    return {key: value.clone() for key, value in load_file(path).items()}


def _pack(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{row}/{key}": torch.as_tensor(value).detach().clone()
        for row, entries in optimizer.state_dict()["state"].items()
        for key, value in entries.items()
        if value is not None
    }


def _unpack(optimizer: torch.optim.Optimizer, packed: dict[str, Tensor]) -> None:
    state: dict[str, Any] = optimizer.state_dict()
    params = [value for group in optimizer.param_groups for value in group["params"]]
    entries: dict[int, dict[str, Tensor]] = {}
    for path, value in packed.items():
        row, key = path.split("/")
        entries.setdefault(int(row), {})[key] = _match_layout(value, params[int(row)])
    optimizer.load_state_dict({**state, "state": entries})


def _match_layout(value: Tensor, like: Tensor | None) -> Tensor:
    """Return a value in the memory layout of its parameter: fused optimizers and penalties walk both in parallel."""
    if like is None or value.shape != like.shape or value.stride() == like.stride():
        return value
    return torch.empty_like(like, device=value.device, requires_grad=False).copy_(value)
