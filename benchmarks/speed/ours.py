"""taskgraft as a rival: a training step of any method, the Fisher diagonal, evaluation; its own defaults."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import torch
from benchmarks.speed.networks import MEAN, NEW, OLD, RATE, STD, Case, labels, network, pixels
from benchmarks.speed.worker import Ready, Work

from taskgraft import inference, methods, tree
from taskgraft.bundle.parents import head_of
from taskgraft.classifier import Classifier, grow, inherited, wrap
from taskgraft.curvature import fisher_diagonal
from taskgraft.features import reader
from taskgraft.loop import precision, steps
from taskgraft.loop.state import TrainState
from taskgraft.method import Method
from taskgraft.settings import Run
from taskgraft.types import Images, Sources, Task

TRACED = 32  # images that the trace is of, as of the other ways
SETTLING = 3  # steps before the clock: kernels, optimiser state, and the teacher's answers on top


def child_of(case: Case) -> Classifier:
    """A classifier of the old tasks with a new one grown, as `extend` trains it; `tasks` old ones of a few classes."""
    each = case.get("classes_each", OLD)
    old = [Task(f"old{i}", tuple(map(str, range(each)))) for i in range(case.get("tasks", 1))]
    net = network(case, each * len(old))
    classifier = wrap(net, head_of(net, case["arch"]), old)
    return grow(classifier, Task("new", tuple(map(str, range(case.get("classes", NEW))))), 0)


def images_of(case: Case) -> Images:
    """The new task's pictures in memory."""
    count = case["images"]
    return Images(pixels(case), {"new": labels(count, case.get("classes", NEW))}, ("",) * count, MEAN, STD)


def settings(case: Case) -> Run:
    """taskgraft's defaults, but for what all rivals share: batch, rate, no augmentation, no warm-up before."""
    return Run(
        steps=10**6, batch=case["batch"], rate=RATE, warmup=0, views=1, augment=case.get("augment", "none"),
        log_every=10**6, precision=case.get("precision", "auto"),
    )  # fmt: skip


@functools.lru_cache(maxsize=8)
def _arithmetic(arch: str, size: int, batch: int) -> str:
    """What "auto" chooses; once for all methods of a case, as `extend` keeps its choice."""
    case = {"arch": arch, "size": size, "batch": batch, "images": batch}
    sources = Sources(images_of(case), None, 1, "none", 0)
    return precision.choose(child_of(case), sources, settings(case), None)[0].precision


def started(case: Case) -> tuple[TrainState, Method, Sources, Run]:
    """A run of the case's method before its first step."""
    run = settings(case)
    if run.precision == "auto":
        chosen: Any = _arithmetic(case["arch"], case["size"], case["batch"])
        run = replace(run, precision=chosen)
    if "live" in case["method"]:
        run = replace(run, views=0)  # what a live teacher is for
    child, method = child_of(case), methods.build(methods.parse(case["method"]))
    sources = Sources(images_of(case), None, run.views, run.augment, run.seed)
    values = dict(child.named_parameters())
    recorded = {name: torch.ones_like(values[name]).detach() for name in inherited(child)}  # what si's parent carries
    state = steps.start(child, method, sources, {"si": {"importance": recorded}}, run)
    return state, method, sources, run


def train(case: Case) -> Ready:
    """A training step of `case["method"]` by the loop that `extend` runs."""
    state, method, sources, run = started(case)
    known = -(-case["images"] // case["batch"]) if "distill" in case["method"] else 0
    state = steps.fit(state, method, sources, run, until=SETTLING + known)

    def call() -> Work:
        nonlocal state
        state = steps.fit(state, method, sources, run, until=state.step + 1)
        return Work(case["batch"])

    return Ready(call, run.precision)


def fisher(case: Case) -> Ready:
    """The Fisher diagonal of all parameters for the old tasks, sampled labels, on `case["images"]` pictures."""
    child, found = child_of(case), images_of(case)
    names, old = [name for name, _ in child.named_parameters()], [task.name for task in child.tasks[:-1]]
    read = reader(found, child)

    def call() -> Work:
        fisher_diagonal(child, read, case["images"], names, old)
        return Work(case["images"])

    few = min(TRACED, case["images"])
    trace = sum(float(one.sum()) for one in fisher_diagonal(child, read, few, names, old).values())
    return Ready(call, "", {"trace": trace})


def evaluate(case: Case) -> Ready:
    """Logits of both tasks on `case["images"]` decoded pictures, as validation asks them."""
    child, found = child_of(case), images_of(case)

    def call() -> Work:
        inference.predict(child, found)
        return Work(case["images"])

    return Ready(call)


def held(case: Case) -> dict[str, Any]:
    """Bytes of parameters, of the optimiser's state, and of what the method remembers, after two steps."""
    state, method, sources, run = started(case)
    state = steps.fit(state, method, sources, run, until=2)
    moments = [value for entry in state.optimiser.state.values() for value in entry.values()]
    return {
        "weights": _bytes(state.classifier.parameters()),
        "optimiser": _bytes(value for value in moments if isinstance(value, torch.Tensor)),
        "method": _bytes(value for _, value in tree.flatten(state.memory)),
        "precision": run.precision,
    }


def _bytes(tensors: Any) -> int:
    storages = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in tensors}
    return sum(storages.values())
