"""The network's forward and backward passes through torch.compile, in training alone.

What is compiled are functions of the classifier, never the classifier itself: names in its state, copies, evaluations
and bundles are those of a run without it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from taskgraft import distributed
from taskgraft.config import TrainingConfig
from taskgraft.errors import InputError, TrainingError, first_line


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


def build_compiler(config: TrainingConfig) -> Compiler | None:
    """Return a compiler as the settings have it; None where they have none."""
    return None if config.compile == "off" else Compiler(config.compile)


def check_compiler(config: TrainingConfig, device: torch.device) -> None:
    """Compile one addition, which takes seconds, so that what is missing shows before anything is trained.

    Args:
        config: Training settings.
        device: The device of training.

    Raises:
        InputError: There is no compiler that works, or there are several processes.
    """
    if config.compile == "off":
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
