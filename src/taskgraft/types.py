"""The nouns of taskgraft: named tuples and aliases, and how a path that a caller gives becomes a Path."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol, overload

from torch import Tensor

from taskgraft.config import Implicit, Softmax

PathLike = str | os.PathLike[str]  # what public functions take for a path; inside there are Paths
Params = dict[str, Tensor]
Memory = dict[str, Any]  # nested dictionaries of tensors, nothing else: saves without pickle
Terms = dict[str, Tensor]  # the summands of the objective by name, each a scalar
Outputs = dict[str, Tensor]  # task name -> logits [B, K]
Memoize = Callable[[str, Callable[[], Params]], Params]  # (name, make): what `make` gave the first time under this name


class Task(NamedTuple):
    """A name and its ordered class names."""

    name: str
    classes: tuple[str, ...]


class Names(Protocol):
    """Names by row: a tuple, or columns that stay on disk until they are looked at."""

    def __len__(self) -> int: ...
    def __getitem__(self, row: int, /) -> str: ...
    def __iter__(self) -> Iterator[str]: ...


class Images(NamedTuple):
    """Images at training size with their labels.

    `pixels` [N, H, W, 3] uint8 (maybe memory-mapped), or [N, ...] float inputs that are used as they are.
    `labels` maps a task to [N] int64, -1 where an image is not labeled for it.
    """

    pixels: Tensor
    labels: dict[str, Tensor]
    names: Names
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)


class TrainingData(NamedTuple):
    """What a method may learn from: the new task's images and, if there are any, a sample of old ones.

    `score(model)` is the mean validation accuracy over tasks, with agreement with the parent for a task that has no
    validation images; None where nothing can be measured. `trial_cache(name, make)` returns what `make` returned the
    first time under this name, to all trials of a search; None outside a search. `tensor_cache(name, make)` does so
    for later runs, where `name` identifies everything that the tensors depend on; None without a cache folder.
    """

    new: Images
    old: Images | None
    views: int  # fixed views of each image; 0 = a fresh one every epoch
    augment: str
    seed: int
    score: Callable[[Any], float] | None = None
    trial_cache: Memoize | None = None
    tensor_cache: Memoize | None = None


class Batch(NamedTuple):
    """One step's images.

    `images` [B, ...] float; `labels` task -> [B] int64, -1 = not labeled; `rows` [B] is each image's row
    in `TrainingData.new`, -1 for images that a method mixed in; `view` [B] which fixed view it is.
    `images`, `rows` and `view` stay on the CPU, so that looking something up by them never waits for a device.
    """

    images: Tensor
    labels: dict[str, Tensor]
    rows: Tensor
    view: Tensor


class Step(NamedTuple):
    """What a method sees of one step.

    `old` task -> how many of its classes are the parent's. `predict(params, mask)` computes the logits that
    the classifier has with these parameters and buffers in eval mode, without gradients, on the batch's images
    where `mask` [B] bool (on the CPU) is true.
    """

    batch: Batch
    outputs: Outputs
    softmax: Softmax
    predict: Callable[[Params, Tensor], Outputs]
    old: dict[str, int]


class Update(NamedTuple):
    """One optimizer step, seen from the weights.

    `gradient` / `scale` is that of the objective without weight penalties, for the parameters that it reached; clipping
    has shortened it by `scale`.
    """

    before: Params
    after: Params
    gradient: Params
    scale: Tensor | float = 1.0


class Quadratic(NamedTuple):
    """(strength / 2) sum_j importance_j (theta_j - anchor_j)^2.

    `importance` None = 1 everywhere. `implicit` True: applied as a proximal step after the optimizer's; False: its
    gradient is added to that of the loss; "auto": as `penalty.settled` decides.
    """

    anchor: Params
    importance: Params | None
    strength: float
    implicit: Implicit = "auto"


class Callbacks(NamedTuple):
    """Where a long run tells what it does; silent by default.

    `progress(what, done, total)`; `logged(line)` gets each line of the metrics once it is on disk.
    """

    info: Callable[[str], None] = lambda line: None
    progress: Callable[[str, int, int], None] = lambda what, done, total: None
    on_metrics: Callable[[Any], None] = lambda line: None


@overload
def as_path(given: PathLike) -> Path: ...
@overload
def as_path(given: PathLike | None) -> Path | None: ...
def as_path(given: PathLike | None) -> Path | None:
    """A path as it is used inside; None stays None."""
    return None if given is None else Path(given)


def as_paths(given: PathLike | Iterable[PathLike]) -> tuple[Path, ...]:
    """One path or several as they are used inside: a string is one path, not its letters."""
    return (Path(given),) if isinstance(given, str | os.PathLike) else tuple(Path(one) for one in given)
