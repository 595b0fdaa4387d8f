"""The network's forward and backward passes through torch.compile, in training alone.

What is compiled are functions of the classifier, never the classifier itself: names in its state, copies, evaluations
and bundles are those of a run without it.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from taskgraft import distributed
from taskgraft.config import TrainingConfig
from taskgraft.data import build_batch
from taskgraft.errors import InputError, TrainingError, first_line
from taskgraft.models.classifier import Classifier
from taskgraft.training import precision
from taskgraft.types import TrainingData

AUTO_MODE = "reduce-overhead"  # CUDA graphs: what small networks wait for is the launch of kernels
AUTO_DEVICES = ("cuda",)  # on a processor compiling brought little: docs/decisions.md 156
MARGIN = 1.1  # factor by which compiled steps must be faster, so that noise does not decide
LEAST_SECONDS = 120.0  # of training: below, compiling takes about as long as it could save
TIMED_STEPS = 5  # after one that warms up, or compiles


class Compiler:
    """Compiles functions of a run on their first call."""

    def __init__(self, mode: str) -> None:
        """`mode` is one of torch.compile: "default", "reduce-overhead" or "max-autotune"."""
        self._mode = mode
        self._compiled: dict[str, Callable[[Tensor], Any]] = {}

    def compile(self, name: str, function: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
        """Return the compiled function; that of an earlier call with this name, where there was one.

        Raises:
            TrainingError: The returned function raises it where torch cannot compile.
        """
        compiled = self._compiled.setdefault(name, torch.compile(function, mode=self._mode))

        def call(images: Tensor) -> Any:
            from torch._dynamo.exc import TorchDynamoException  # its package takes a second

            try:
                return compiled(images)
            except TorchDynamoException as error:
                raise TrainingError(
                    f"--compile {self._mode}: torch cannot compile this network ({first_line(error)}); leave --compile "
                    "out"
                ) from error

        return call


def choose_compilation(
    classifier: Classifier, sources: TrainingData, config: TrainingConfig
) -> tuple[TrainingConfig, str]:
    """Replace compile "auto" by a mode if compiled steps are faster here, and "off" otherwise.

    Args:
        classifier: The classifier to train.
        sources: Training images.
        config: Training settings, with their precision chosen.

    Returns:
        The settings, and the reason; "" where nothing was to be chosen.
    """
    if config.compile != "auto":
        return config, ""
    mode, reason = _choose_mode(classifier, sources, config)
    return replace(config, compile=mode), reason


def _choose_mode(classifier: Classifier, sources: TrainingData, config: TrainingConfig) -> tuple[Any, str]:
    device = next(classifier.parameters()).device
    if device.type not in AUTO_DEVICES:
        return "off", f"auto: not tried on {device.type}, where compiling brings little"
    if distributed.world_size() > 1:
        return "off", "auto: not tried, since compiling works in one process only"
    plain = _time_steps(classifier, sources, config, compiled=False)
    if plain * config.steps < LEAST_SECONDS:
        return "off", f"auto: not tried, since training takes about {plain * config.steps:.0f} s without"
    problem = _try_compiler(device.type)
    if problem:
        return "off", f"auto: torch.compile does not work here ({problem})"
    from torch._dynamo.exc import TorchDynamoException

    try:
        compiled = _time_steps(classifier, sources, config, compiled=True)
    except (TorchDynamoException, RuntimeError) as error:
        return "off", f"auto: torch cannot compile this network ({first_line(error)})"
    measured = f"measured here: {1000 * plain:.3g} ms a step, {1000 * compiled:.3g} ms compiled"
    return (AUTO_MODE if compiled * MARGIN < plain else "off"), measured


def _time_steps(classifier: Classifier, sources: TrainingData, config: TrainingConfig, *, compiled: bool) -> float:
    """Return the median of the seconds of some steps."""
    model = precision.copy_for(classifier, config.precision, config)
    device = next(model.parameters()).device
    batch = build_batch(sources, 0, config.batch_size, device)
    forward = Compiler(AUTO_MODE).compile("all", model.forward) if compiled else model
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        seconds = [
            precision.time_step(forward, batch, config.precision, config.softmax) for _ in range(TIMED_STEPS + 1)
        ]
    return statistics.median(seconds[1:])


def build_compiler(config: TrainingConfig) -> Compiler | None:
    """Return a compiler as the settings have it; None where they have none."""
    return None if config.compile in ("off", "auto") else Compiler(config.compile)


def check_compiler(config: TrainingConfig, device: torch.device) -> None:
    """Compile one addition, which takes seconds, so that what is missing shows before anything is trained.

    Args:
        config: Training settings.
        device: The device of training.

    Raises:
        InputError: There is no compiler that works, or there are several processes.
    """
    if config.compile in ("off", "auto"):
        return
    if distributed.world_size() > 1:
        raise InputError(
            f"--compile {config.compile} works in one process, and there are {distributed.world_size()}; leave "
            "--compile or --gpus out"
        )
    reason = _try_compiler(device.type)
    if reason:
        needed = "Triton" if device.type == "cuda" else "a C++ compiler and the header files of Python"
        raise InputError(
            f"--compile {config.compile}: torch.compile does not work here ({reason}); it needs {needed}: install what "
            "is missing, or leave --compile out"
        )


def _try_compiler(device: str) -> str:
    """Return why an addition cannot be compiled, "" where it can."""
    from torch._dynamo.exc import TorchDynamoException

    number = os.getpid()  # another kernel each time: one in torch's cache would prove nothing
    try:
        torch.compile(lambda value: value + number)(torch.zeros(8, device=device))
    except (TorchDynamoException, RuntimeError, OSError, ImportError) as error:
        return first_line(error)
    return ""
