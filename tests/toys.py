"""Small things to train on: a tiny network, coloured noise, a run of a few steps."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from taskgraft import pytree, seeding
from taskgraft.bundle.architecture import create_network
from taskgraft.config import TrainingConfig
from taskgraft.methods import composition
from taskgraft.methods.protocol import Method
from taskgraft.models.classifier import Classifier, grow, inherited_parameters, wrap
from taskgraft.training import loop
from taskgraft.training.checkpoints import TrainState
from taskgraft.types import Images, Task, TrainingData

OLD = Task("shape", ("round", "square", "thin"))
NEW = Task("paint", ("red", "green", "blue", "grey"))
RUN = TrainingConfig(
    steps=6, batch_size=8, optimizer="sgd", lr=0.02, head_steps=5, views=2, eval_every=3, log_every=1, save_every=2,
    precision="fp32", seed=3,
)  # fmt: skip


def make_images(count: int, task: Task, seed: int, size: int = 32) -> Images:
    """Noise whose mean colour tells the class; [count, size, size, 3] uint8."""
    rng = seeding.generator(seed, "pictures", task.name)
    labels = np.arange(count) % len(task.classes)
    colors = seeding.generator(0, "colours", task.name).integers(0, 256, (len(task.classes), 3))
    pixels = np.clip(colors[labels][:, None, None] + rng.normal(0, 40, (count, size, size, 3)), 0, 255)
    names = tuple(f"{task.name}/{number}.png" for number in range(count))
    return Images(
        torch.from_numpy(pixels.astype(np.uint8)), {task.name: torch.from_numpy(labels)}, names, (0.5,) * 3, (0.25,) * 3
    )


def parent(arch: str = "test_resnet", **options: Any) -> Classifier:
    """A tiny timm network with a head for OLD and weights from a fixed seed."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net, head, _ = create_network(arch, len(OLD.classes), **options)
    return wrap(net, head, [OLD]).eval()


def make_data(count: int = 20, config: TrainingConfig = RUN) -> TrainingData:
    """New images, an old sample for those who use one, and a Score that likes what has moved least."""
    start = parent().linears()[0].weight

    def score(model: Classifier) -> float:
        return -float((model.linears()[0].weight - start).abs().sum().detach())

    return TrainingData(
        make_images(count, NEW, 5), make_images(9, OLD, 7), config.views, config.augment, config.seed, score
    )


def parent_memory(child: Classifier) -> dict[str, Any]:
    """What a parent's bundle may carry: si's recorded importance, without which it refuses."""
    names = list(inherited_parameters(child))
    values = dict(child.named_parameters())
    kept = {name: torch.full_like(values[name], 0.5 + i % 3).detach() for i, name in enumerate(names)}
    return {"si": {"importance": kept}}


def start_run(
    notation: str, config: TrainingConfig = RUN, model: Classifier | None = None
) -> tuple[TrainState, Method, TrainingData]:
    """A run of a method before its first step."""
    method = composition.build(notation)
    images = make_data(config=config)
    child = grow(model or parent(), NEW, config.seed)
    child.softmax = config.softmax
    return loop.start(child, method, images, parent_memory(child), config), method, images


def run_to_end(
    notation: str, config: TrainingConfig = RUN, model: Classifier | None = None
) -> tuple[Classifier, dict[str, Any]]:
    """The child and what it keeps, after the last step and the method's own end."""
    state, method, images = start_run(notation, config, model)
    state = loop.fit(state, method, images, config)
    if not method.finish:
        return state.classifier, {}
    return method.finish(state.classifier, state.memory, images)


def run_steps(notation: str, config: TrainingConfig = RUN) -> TrainState:
    state, method, images = start_run(notation, config)
    return loop.fit(state, method, images, config)


def weights(state: TrainState) -> dict[str, Tensor]:
    return pytree.state(state.classifier)


def equal(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    """Equal names and equal bits."""
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def digest(tensors: Mapping[str, Tensor]) -> str:
    """A digest of names and bits."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(name.encode() + tensors[name].cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


def write_folder(folder: Path, task: Task, count: int, seed: int, size: int = 32) -> Path:
    """Write images as folder/<class>/<n>.png, `count` of them in all."""
    images = make_images(count, task, seed, size)
    for number, (pixels, label) in enumerate(zip(images.pixels, images.labels[task.name].tolist(), strict=True)):
        root = folder / task.classes[label]
        root.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.numpy()).save(root / f"{number}.png")
    return folder
