"""A bundle on disk: a folder that plain timm loads as one joint classifier, old rows then new rows.

A child with taps or branches is more than that: its tensors bear taskgraft's own names, and config.json says so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, NamedTuple

import timm
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from taskgraft import pytree
from taskgraft.bundle import digests, structure, weights
from taskgraft.bundle import task_cards as task_cards
from taskgraft.bundle.validation import create_model, read_json, told
from taskgraft.config import Softmax
from taskgraft.data import transforms
from taskgraft.data.transforms import Preprocessing
from taskgraft.errors import CheckpointError
from taskgraft.models.classifier import Classifier, merge_heads, wrap
from taskgraft.results.files import atomic, digest, write_json
from taskgraft.types import Memory, Task

FORMAT = 1


class Bundle(NamedTuple):
    """An opened model with everything known of it.

    `memory` is what the next extension needs; `found` says what was inferred when it was opened; `lineage` holds
    an entry for each extension so far; `cards` a task card for each task that has one; `options` are timm's
    `model_args`; `home` is the folder of a bundle; `preprocess_from` says who told the preprocessing.
    """

    classifier: Classifier
    preprocessing: Preprocessing
    memory: Memory
    source: str
    digest: str
    arch: str
    head: str
    found: tuple[str, ...] = ()
    lineage: tuple[dict[str, Any], ...] = ()
    cards: dict[str, dict[str, Any]] = {}  # noqa: RUF012 - never changed
    options: dict[str, Any] = {}  # noqa: RUF012
    home: Path | None = None
    preprocess_from: str = ""


class _Task(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str = Field(max_length=1024, pattern=r"^[^/\\]+$")  # it becomes a file name and a part of a path
    classes: list[Annotated[str, Field(max_length=1024)]] = Field(max_length=100_000)
    range: tuple[int, int]


class _Ancestor(BaseModel):
    model_config = ConfigDict(extra="allow")
    parent: dict[str, Any] = {}
    task: str | None = None
    method: str | None = None
    accuracy: dict[str, float] = {}


class _Graft(BaseModel):
    format: int
    tasks: list[_Task] = Field(min_length=1, max_length=1000)
    softmax: Softmax
    head: str
    parent: dict[str, Any]
    method: str
    lineage: list[_Ancestor] = []
    heads: list[structure.HeadShape] = []  # empty: one head for each task, on the backbone's own features
    extras: list[structure.ExtraShape] = []  # not empty: plain timm cannot rebuild the model


class _Config(BaseModel):
    architecture: str
    num_classes: int
    model_args: dict[str, Any] = {}
    pretrained_cfg: dict[str, Any]
    taskgraft: _Graft


def write(folder: Path, bundle: Bundle, *, method: str, parent: dict[str, Any]) -> None:
    """Write config.json, model.safetensors, memory.safetensors and cards/ into `folder`, each atomically."""
    classifier = bundle.classifier
    if len(classifier.extras):
        tensors = dict(classifier.state_dict())
    else:
        weight, bias = merge_heads(classifier)
        layer = {f"{bundle.head}.weight": weight, f"{bundle.head}.bias": bias}
        tensors = {**classifier.backbone.state_dict(), **layer}
    _tensors(folder / "model.safetensors", tensors)
    if bundle.memory:
        _tensors(folder / "memory.safetensors", dict(pytree.flatten(bundle.memory)))
    for task, card in bundle.cards.items():
        write_card(folder, task, card)
    write_json(folder / "config.json", _config(bundle, method, parent))  # last: with it the bundle is whole


def write_card(folder: Path, task: str, card: dict[str, Any]) -> None:
    """Write the card of one task into a bundle, atomically; nothing else changes."""
    write_json(folder / "cards" / f"{task}.json", card)
    digests.renew(folder, f"cards/{task}.json")


def read(folder: Path) -> Bundle:
    """Open a bundle. Raises TaskgraftError for a newer format, a damaged file, or a configuration that contradicts itself."""
    try:
        raw = read_json(folder / "config.json")
        newer = int(raw["taskgraft"]["format"])
        if newer > FORMAT:
            raise CheckpointError(
                f"{folder} is a bundle of format {newer}; this taskgraft reads up to {FORMAT}: upgrade it"
            )
        config = _Config.model_validate(raw)
    except ValidationError as error:
        raise CheckpointError(f"{folder}/config.json is damaged: {told(error)}; copy it again") from error
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise CheckpointError(
            f"{folder}/config.json is damaged: {str(error).splitlines()[0][:160]}; copy it again"
        ) from error
    graft = config.taskgraft
    tasks = _tasks(folder, config)
    tensors, _, _ = weights.load(folder / "model.safetensors")
    if not timm.is_model(config.architecture):
        raise CheckpointError(f"{folder}: timm does not know the architecture {config.architecture!r}; upgrade timm")
    memory, cards = _beside(folder)
    return Bundle(
        _classifier(folder, config, tasks, tensors),
        transforms.from_timm(config.pretrained_cfg, f"{folder}/config.json"),
        memory,
        str(folder),
        digest(folder / "model.safetensors"),
        config.architecture,
        graft.head,
        (f"a taskgraft bundle with the tasks {', '.join(task.name for task in tasks)}",),
        tuple(entry.model_dump(exclude_unset=True) for entry in graft.lineage),
        cards,
        config.model_args,
        folder,
        f"as {folder / 'config.json'} says",
    )


def _classifier(folder: Path, config: _Config, tasks: list[Task], tensors: dict[str, torch.Tensor]) -> Classifier:
    """The network that config.json describes, with all tensors loaded."""
    graft = config.taskgraft
    net = create_model(folder / "config.json", config.architecture, config.num_classes, config.model_args)
    whole = net
    if graft.extras:
        _sizes_fit(folder, graft, tensors)
        whole = structure.rebuild(net, graft.head, tasks, graft.softmax, graft.heads, graft.extras)
    try:
        whole.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise CheckpointError(
            f"{folder}/model.safetensors does not fit its config.json: {str(error).splitlines()[-1].strip()[:200]}; "
            "copy both again"
        ) from error
    if isinstance(whole, Classifier):
        return whole
    return wrap(net, graft.head, tasks, graft.softmax, [(shape.task, shape.rows) for shape in graft.heads])


def _sizes_fit(folder: Path, graft: _Graft, tensors: dict[str, torch.Tensor]) -> None:
    """Compare heads and rungs that are to be made with those that are there, before memory is asked for."""
    if not graft.heads:
        raise CheckpointError(f"{folder}/config.json: it has extras but no heads, so it is damaged; copy it again")
    for number, extra in enumerate(graft.extras):
        for rung, size in enumerate(zip(extra.widths, extra.channels, strict=False)):
            found = tensors.get(f"extras.{number}.rungs.{rung}.read.0.weight")
            if found is None or tuple(found.shape[:2]) != size:
                raise CheckpointError(
                    f"{folder}/model.safetensors does not fit its config.json: rung {rung} of a ladder has not "
                    f"{size[0]} rows of {size[1]} channels; copy both again"
                )
    for number, shape in enumerate(graft.heads):
        found = tensors.get(f"heads.{number}.weight")
        if found is None or tuple(found.shape) != (shape.rows, shape.columns[1] - shape.columns[0]):
            raise CheckpointError(
                f"{folder}/model.safetensors does not fit its config.json: heads.{number} of {shape.task!r} "
                f"has not {shape.rows} rows of the columns {shape.columns}; copy both again"
            )


def _beside(folder: Path) -> tuple[Memory, dict[str, dict[str, Any]]]:
    """The memory and the task cards of a bundle."""
    kept, cards = folder / "memory.safetensors", {}
    try:
        memory = {name: value.clone() for name, value in load_file(kept).items()} if kept.exists() else {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{kept} is no sound safetensors file: {error}; copy it again") from error
    weights.require_finite(kept, memory)
    for file in sorted((folder / "cards").glob("*.json")):
        cards[file.stem] = task_cards.read(file)
    try:
        return pytree.unflatten(memory), cards
    except ValueError as error:
        raise CheckpointError(f"{kept} is damaged: {error}; copy it again") from error


def _tasks(folder: Path, config: _Config) -> list[Task]:
    tasks, row = [], 0
    for entry in config.taskgraft.tasks:
        if entry.range != (row, row + len(entry.classes)) or len(set(entry.classes)) != len(entry.classes):
            raise CheckpointError(
                f"{folder}/config.json: task {entry.name!r} does not fit its rows {entry.range}, so it is damaged; "
                "copy it again"
            )
        row = entry.range[1]
        tasks.append(Task(entry.name, tuple(entry.classes)))
    if row != config.num_classes or len({task.name for task in tasks}) != len(tasks):
        raise CheckpointError(
            f"{folder}/config.json: the tasks cover {row} of {config.num_classes} rows, so it is damaged; copy it again"
        )
    sizes = dict.fromkeys((task.name for task in tasks), 0)
    for shape in config.taskgraft.heads:
        sizes[shape.task] = sizes.get(shape.task, 0) + shape.rows
    if config.taskgraft.heads and sizes != {task.name: len(task.classes) for task in tasks}:
        raise CheckpointError(
            f"{folder}/config.json: the heads do not have the rows of the tasks, so it is damaged; copy it again"
        )
    return tasks


def _config(bundle: Bundle, method: str, parent: dict[str, Any]) -> dict[str, Any]:
    tasks, row = [], 0
    for task in bundle.classifier.tasks:
        tasks.append({"name": task.name, "classes": list(task.classes), "range": [row, row + len(task.classes)]})
        row += len(task.classes)
    return {
        "architecture": bundle.arch,
        "num_classes": row,
        "num_features": bundle.classifier.linears()[0].in_features,
        "label_names": [name for task in bundle.classifier.tasks for name in task.classes],
        "model_args": bundle.options,
        "pretrained_cfg": {
            **transforms.to_timm(bundle.preprocessing),
            "num_classes": row,
            "classifier": bundle.head,
        },
        "taskgraft": {
            "format": FORMAT,
            "tasks": tasks,
            "softmax": bundle.classifier.softmax,
            "head": bundle.head,
            "heads": [shape.model_dump(mode="json") for shape in structure.heads(bundle.classifier)],
            "extras": [shape.model_dump(mode="json") for shape in structure.extras(bundle.classifier)],
            "plain_timm": not len(bundle.classifier.extras),
            "parent": parent,
            "method": method,
            "lineage": list(bundle.lineage),
        },
    }


def _tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    with atomic(path) as aside:
        save_file(
            {name: value.detach().cpu().contiguous() for name, value in tensors.items()},
            aside,
            {"format": "pt"},
        )
