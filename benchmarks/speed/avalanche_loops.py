"""Avalanche as a rival: its own strategies and loops at their defaults, on the same images, already normalized.

They are normalized before the clock starts, which favors Avalanche. A turn is an epoch, timed between the hooks that
its plugins get, so that what a strategy does at the end of an experience is left out.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from benchmarks.speed.networks import LR, NEW, OLD, Case, labels, network, normalized, pixels
from benchmarks.speed.worker import Ready, Work
from torch import Tensor, nn

warnings.simplefilter("ignore")  # it warns of its own deprecations

from avalanche.benchmarks import benchmark_from_datasets  # noqa: E402
from avalanche.benchmarks.utils import (  # noqa: E402
    _make_taskaware_tensor_classification_dataset as of_tensors,  # what its own strategies make data sets with
)
from avalanche.training import EWC, LwF, Naive, SynapticIntelligence  # noqa: E402
from avalanche.training.plugins import EWCPlugin, SupervisedPlugin  # noqa: E402

# Strategies have no default strength; a strength changes no timing.
STRATEGIES = {
    "Naive": (Naive, {}),
    "EWC": (EWC, {"ewc_lambda": 1.0}),
    "LwF": (LwF, {"alpha": 1.0, "temperature": 2.0}),
    "SI": (SynapticIntelligence, {"si_lambda": 1.0}),
}


class Watch(SupervisedPlugin):
    """Notes when an epoch begins and ends."""

    def __init__(self) -> None:
        super().__init__()
        self.begin = self.end = 0.0

    def before_training_epoch(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self.begin = time.perf_counter()

    def after_training_epoch(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self.end = time.perf_counter()


def dataset(inputs: Tensor, target: Tensor) -> Any:
    """Avalanche's data set of tensors in memory."""
    return of_tensors(inputs, target.tolist(), task_labels=0)


def _strategy(case: Case, name: str, callbacks: Watch) -> tuple[Any, Any]:
    """A strategy that has learnt a batch of the old classes, and the experience of the new ones."""
    net = network(case, OLD + NEW)
    found = normalized(pixels(case))
    old = dataset(found[: case["batch"]], labels(case["batch"], OLD))
    new = dataset(found, OLD + labels(len(found), NEW))
    benchmark = benchmark_from_datasets(train=[old, new], test=[old, new])
    kind, strength = STRATEGIES[name]
    strategy = kind(
        model=net, optimizer=torch.optim.AdamW(net.parameters(), LR, weight_decay=0.0),
        criterion=nn.CrossEntropyLoss(), train_mb_size=case["batch"], train_epochs=1, eval_mb_size=case["batch"],
        device="cpu", plugins=[callbacks], **strength,
    )  # fmt: skip
    strategy.train(benchmark.train_stream[0])
    return strategy, benchmark.train_stream[1]


def train(case: Case) -> Ready:
    """An epoch of the case's strategy on the second experience; always with one experience behind it."""
    callbacks = Watch()
    strategy, experience = _strategy(case, case["strategy"], callbacks)

    def call() -> Work:
        strategy.clock.train_exp_counter = 1
        strategy.train(experience)
        return Work(case["images"], callbacks.end - callbacks.begin)

    return Ready(call, "fp32")


def evaluate(case: Case) -> Ready:
    """Its evaluation loop with its default metrics."""
    strategy, experience = _strategy(case, "Naive", Watch())

    def call() -> Work:
        strategy.eval([experience])
        return Work(case["images"])

    return Ready(call, f"batch {case['batch']}")


def importances_of(
    net: nn.Module, inputs: Tensor, target: Tensor, criterion: Any, size: int
) -> Callable[[], list[Tensor]]:
    """What its EWC measures at the end of an experience, in batches of `size`."""
    plugin, given = EWCPlugin(1.0), dataset(inputs, target)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)

    def call() -> list[Tensor]:
        found = plugin.compute_importances(net, criterion, optimizer, given, torch.device("cpu"), size)
        return [one.data for one in found.values()]

    return call
