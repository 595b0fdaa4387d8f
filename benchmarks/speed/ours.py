"""taskgraft as a rival: a training step of any method, the Fisher diagonal, evaluation; its own defaults."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import torch
from benchmarks.speed.networks import LR, MEAN, NEW, OLD, STD, Case, labels, network, pixels
from benchmarks.speed.worker import Ready, Work

from taskgraft import pytree
from taskgraft.bundle.architecture import find_head
from taskgraft.config import TrainingConfig
from taskgraft.curvature.fisher import fisher_diagonal
from taskgraft.methods import composition
from taskgraft.methods.protocol import Method
from taskgraft.models import inference
from taskgraft.models.classifier import Classifier, grow, inherited_parameters, wrap
from taskgraft.models.inference import image_reader
from taskgraft.training import loop, precision
from taskgraft.training.checkpoints import TrainState
from taskgraft.types import Images, Task, TrainingData

TRACED = 32  # images that the trace is of, as of the other ways
SETTLING = 3  # steps before the clock: kernels, optimizer state, and the teacher's answers on top


def child_of(case: Case) -> Classifier:
    """A classifier of the old tasks with a new one grown, as `extend` trains it; `tasks` old ones of a few classes."""
    each = case.get("classes_each", OLD)
    old = [Task(f"old{i}", tuple(map(str, range(each)))) for i in range(case.get("tasks", 1))]
    net = network(case, each * len(old))
    classifier = wrap(net, find_head(net, case["arch"]), old)
    return grow(classifier, Task("new", tuple(map(str, range(case.get("classes", NEW))))), 0)


def images_of(case: Case) -> Images:
    """The new task's images in memory."""
    count = case["images"]
    return Images(pixels(case), {"new": labels(count, case.get("classes", NEW))}, ("",) * count, MEAN, STD)


def settings(case: Case) -> TrainingConfig:
    """taskgraft's defaults, but for what all rivals share: batch, rate, no augmentation, no warm-up before."""
    return TrainingConfig(
        steps=10**6, batch_size=case["batch"], lr=LR, head_steps=0, views=1, augment=case.get("augment", "none"),
        log_every=10**6, precision=case.get("precision", "auto"),
    )  # fmt: skip


@functools.lru_cache(maxsize=8)
def _arithmetic(arch: str, size: int, batch: int, device: torch.device | None) -> str:
    """What "auto" chooses; once for all methods of a case, as `extend` keeps its choice."""
    case = {"arch": arch, "size": size, "batch": batch, "images": batch}
    sources = TrainingData(images_of(case), None, 1, "none", 0)
    return precision.choose_precision(child_of(case).to(device or "cpu"), sources, settings(case), None)[0].precision


def started(case: Case, device: torch.device | None = None) -> tuple[TrainState, Method, TrainingData, TrainingConfig]:
    """A run of the case's method before its first step."""
    run = settings(case)
    if run.precision == "auto":
        chosen: Any = _arithmetic(case["arch"], case["size"], case["batch"], device)
        run = replace(run, precision=chosen)
    if "live" in case["method"]:
        run = replace(run, views=0)  # what a live teacher is for
    child, method = child_of(case).to(device or "cpu"), composition.build(case["method"])
    sources = TrainingData(images_of(case), None, run.views, run.augment, run.seed)
    values = dict(child.named_parameters())
    recorded = {
        name: torch.ones_like(values[name]).detach() for name in inherited_parameters(child)
    }  # what si's parent carries
    state = loop.start(child, method, sources, {"si": {"importance": recorded}}, run)
    return state, method, sources, run


def train(case: Case) -> Ready:
    """A training step of `case["method"]` by the loop that `extend` runs."""
    state, method, sources, config = started(case)
    known = -(-case["images"] // case["batch"]) if "distill" in case["method"] else 0
    state = loop.fit(state, method, sources, config, until=SETTLING + known)

    def call() -> Work:
        nonlocal state
        state = loop.fit(state, method, sources, config, until=state.step + 1)
        return Work(case["batch"])

    return Ready(call, config.precision)


def fisher(case: Case) -> Ready:
    """The Fisher diagonal of all parameters for the old tasks, sampled labels, on `case["images"]` images."""
    child, found = child_of(case), images_of(case)
    names, old = [name for name, _ in child.named_parameters()], [task.name for task in child.tasks[:-1]]
    read = image_reader(found, child)

    def call() -> Work:
        fisher_diagonal(child, read, case["images"], names, old)
        return Work(case["images"])

    few = min(TRACED, case["images"])
    trace = sum(float(one.sum()) for one in fisher_diagonal(child, read, few, names, old).values())
    return Ready(call, "", {"trace": trace})


def evaluate(case: Case) -> Ready:
    """Logits of both tasks on `case["images"]` decoded images, as validation asks them."""
    child, found = child_of(case), images_of(case)

    def call() -> Work:
        inference.predict(child, found)
        return Work(case["images"])

    return Ready(call)


def held(case: Case) -> dict[str, Any]:
    """Bytes of parameters, of the optimizer's state, and of what the method remembers, after two steps."""
    state, method, sources, config = started(case)
    state = loop.fit(state, method, sources, config, until=2)
    moments = [value for entry in state.optimizer.state.values() for value in entry.values()]
    return {
        "weights": _bytes(state.classifier.parameters()),
        "optimizer": _bytes(value for value in moments if isinstance(value, torch.Tensor)),
        "method": _bytes(value for _, value in pytree.flatten(state.memory)),
        "precision": config.precision,
    }


def _bytes(tensors: Any) -> int:
    storages = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in tensors}
    return sum(storages.values())
