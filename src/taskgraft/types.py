"""Shared types: named tuples and aliases, and how a path that a caller gives becomes a Path."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol, overload

from torch import Tensor

from taskgraft.config import FisherPrecision, Implicit, Softmax

PathLike = str | os.PathLike[str]  # what public functions take for a path; inside there are Paths
Params = dict[str, Tensor]  # name -> parameter
Memory = dict[str, Any]  # nested dictionaries of tensors, nothing else: saved without pickle
Terms = dict[str, Tensor]  # terms of the objective by name, each a scalar
Outputs = dict[str, Tensor]  # task name -> logits [B, K]
Teacher = Callable[[Tensor], Outputs]  # preprocessed images [B, ...] -> logits of each task that it answers
Memoize = Callable[[str, Callable[[], Params]], Params]  # (name, make): what `make` returned the first time


class Task(NamedTuple):
    """A task's name and its class names in index order."""

    name: str
    classes: tuple[str, ...]


class Names(Protocol):
    """Names by row: a tuple, or a file that is read when a name is needed."""

    def __len__(self) -> int: ...
    def __getitem__(self, row: int, /) -> str: ...
    def __iter__(self) -> Iterator[str]: ...


class Images(NamedTuple):
    """Images at training size with their labels.

    Attributes:
        pixels: [N, H, W, C] uint8 (maybe memory-mapped), or [N, ...] float inputs that are used as they are.
        labels: Task name -> [N] int64, -1 where an image is not labeled for it.
        names: Name of each image.
        mean: Subtracted from each channel of values scaled to [0, 1].
        std: Each channel is divided by it.
    """

    pixels: Tensor
    labels: dict[str, Tensor]
    names: Names
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def select(self, rows: Tensor) -> Images:
        """Return the images at `rows` [M], in that order."""
        labels = {task: target[rows] for task, target in self.labels.items()}
        return self._replace(
            pixels=self.pixels[rows], labels=labels, names=tuple(self.names[row] for row in rows.tolist())
        )


class TrainingData(NamedTuple):
    """The data of a run, as methods see it.

    Attributes:
        new: Images of the new task.
        old: A sample of old images, if there is one.
        views: Fixed augmented views of each image; 0 = a fresh one every epoch.
        augment: Kind of augmentation.
        seed: Random seed.
        score: Mean validation accuracy of a classifier over tasks, with agreement with the parent for a task without
            validation images; None where nothing can be measured.
        trial_cache: Shares tensors between the trials of a search; None outside a search.
        tensor_cache: Stores tensors for later runs, under a name that identifies everything that they depend on; None
            without a cache folder.
        unlabeled: Images without labels: half of every batch, for the methods that have a teacher.
        teacher: Answers every task in the parent's place. None: the parent is the teacher of the old tasks.
        fisher_precision: Of the sums in which EWC and MAS measure what matters.
    """

    new: Images
    old: Images | None
    views: int
    augment: str
    seed: int
    score: Callable[[Any], float] | None = None
    trial_cache: Memoize | None = None
    tensor_cache: Memoize | None = None
    unlabeled: Images | None = None
    teacher: Teacher | None = None
    fisher_precision: FisherPrecision = "auto"


MIXED_IN, UNLABELED = -1, -2  # in `Batch.rows`


class Batch(NamedTuple):
    """The images of a step. `rows` and `view` stay on the CPU, so that choosing among them waits for no device.

    Attributes:
        images: [B, ...] float, on the device of training.
        labels: Task name -> [B] int64, -1 = not labeled.
        rows: [B] row of each image in `TrainingData.new`; MIXED_IN for images that a method added with their labels,
            UNLABELED for images without labels and for blends of several images.
        view: [B] which fixed view each image is.
        partners: The labels of the images that these were blended with, as `labels`; None where none were.
        share: How much `labels` count, the rest being `partners`.
    """

    images: Tensor
    labels: dict[str, Tensor]
    rows: Tensor
    view: Tensor
    partners: dict[str, Tensor] | None = None
    share: float = 1.0


class Step(NamedTuple):
    """A step as methods see it.

    Attributes:
        batch: The images.
        outputs: Logits [B, K] by task.
        softmax: Per task, or joint over all classes.
        predict: `predict(params, mask)` computes the classifier's logits with these parameters and buffers, in eval
            mode without gradients, on the batch's images where `mask` [B] bool (on the CPU) is true.
        old: Task name -> number of its classes that are the parent's.
        teach: `teach(mask)` computes the logits of `TrainingData.teacher` on the images where `mask` is true; None
            without one.
    """

    batch: Batch
    outputs: Outputs
    softmax: Softmax
    predict: Callable[[Params, Tensor], Outputs]
    old: dict[str, int]
    teach: Callable[[Tensor], Outputs] | None = None


class Update(NamedTuple):
    """An optimizer step as seen from the weights.

    Attributes:
        before: Parameters before the step.
        after: Parameters after the step.
        gradient: `gradient` / `scale` is the gradient of the objective without penalties on weights, for the parameters
            that it reached.
        scale: Factor of gradient clipping.
    """

    before: Params
    after: Params
    gradient: Params
    scale: Tensor | float = 1.0


class Quadratic(NamedTuple):
    """A penalty on weights: (strength / 2) sum_j importance_j (theta_j - anchor_j)^2.

    Attributes:
        anchor: Where each parameter is pulled to.
        importance: Importance of each value of each parameter; None = 1 everywhere.
        strength: Factor of the penalty.
        implicit: True: a proximal step after the optimizer's; False: added to the loss's gradient; "auto": as
            `penalties.choose_form` decides.
    """

    anchor: Params
    importance: Params | None
    strength: float
    implicit: Implicit = "auto"


class Callbacks(NamedTuple):
    """What a long run calls; by default nothing.

    Attributes:
        info: Called with a line of information.
        progress: Called with the activity, the steps that are done, and the number of all steps.
        on_metrics: Called with each line of the metrics once it is on disk.
        status: Called with a few words on how training goes, to be shown beside the progress.
    """

    info: Callable[[str], None] = lambda line: None
    progress: Callable[[str, int, int], None] = lambda what, done, total: None
    on_metrics: Callable[[Any], None] = lambda line: None
    status: Callable[[str], None] = lambda text: None


@overload
def as_path(path: PathLike) -> Path: ...
@overload
def as_path(path: PathLike | None) -> Path | None: ...
def as_path(path: PathLike | None) -> Path | None:
    """Convert to a Path; None stays None."""
    return None if path is None else Path(path)


def as_paths(paths: PathLike | Iterable[PathLike]) -> tuple[Path, ...]:
    """Convert one path or several to Paths; a string is one path, not its characters."""
    return (Path(paths),) if isinstance(paths, str | os.PathLike) else tuple(Path(path) for path in paths)
