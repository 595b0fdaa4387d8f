"""What the heads read: the columns for each image, and extras that make further columns."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from taskgraft import data, parallel
from taskgraft.allocator import keep_freed_memory
from taskgraft.classifier import Classifier, newest, old_widths, read_columns
from taskgraft.modes import evaluating
from taskgraft.types import Images, Outputs, Params, Sources

RECALL = 0.9


def features_of(classifier: Classifier, images: Images, size: int = 32) -> Tensor:
    """The columns that the heads read for each image [N, D], in eval mode, without gradients; modes are restored."""
    keep_freed_memory()
    read, count = reader(images, classifier), len(images.pixels)
    own = parallel.part(count)
    with evaluating(classifier), torch.inference_mode():
        parts = [
            classifier.features(read(first, min(first + size, own.stop))) for first in range(own.start, own.stop, size)
        ]
        if not parts:  # more processes than images: the width still has to be known
            parts = [classifier.features(read(0, 1))[:0]]
        found = parallel.gathered(torch.cat(parts), count)
    return found.clone()


def answers_of(classifier: Classifier, images: Tensor) -> Outputs:
    """Logits of every task on ready images [B, ...], in eval mode, without gradients; modes are restored."""
    with evaluating(classifier), torch.inference_mode():
        outputs: Outputs = classifier(images.to(next(classifier.parameters()).device))
    return outputs


def attach(classifier: Classifier, extra: nn.Module, images: Images) -> int:
    """Add an extra and let the newest head read it, beside the extras that came with this head already.

    Returns the first of its columns.
    """
    few = sample(images, 2)
    before = features_of(classifier, few).shape[1]
    start = before if len(classifier.extras) == classifier.settled else classifier.parts[-1].start
    classifier.extras.append(extra.to(next(classifier.parameters()).device))
    read_columns(classifier, start, features_of(classifier, few).shape[1])
    return before


def once(sources: Sources, name: str, make: Callable[[], Params]) -> Params:
    """What `make` computes; in a search, what it computed for the first trial that asked under this name."""
    return sources.once(name, make) if sources.once else make()


def balance(classifier: Classifier, sources: Sources) -> None:
    """Shift the rows that were added to an old task, so that RECALL of their own training images are answered by them.

    Old and added rows have never competed on an old image; without a shift whichever are louder take everything. Where
    old images of the task were there to learn from, nothing is shifted.
    """
    task = newest(classifier)
    width, labels = old_widths(classifier).get(task, 0), sources.new.labels[newest(classifier)]
    seen = bool(((labels >= 0) & (labels < width)).any()) or (sources.old is not None and task in sources.old.labels)
    if not width or seen or not bool((labels >= width).any()):
        return
    columns = features_of(classifier, sources.new)
    with torch.no_grad():
        logits = classifier.answer(columns)[task][(labels >= width).to(columns.device)]
        margin = logits[:, width:].max(1).values - logits[:, :width].max(1).values
        classifier.linears()[-1].bias.sub_(margin.quantile(1 - RECALL))


def sample(images: Images, count: int) -> Images:
    """`count` images from all of a set: sets lie class by class."""
    total = len(images.pixels)
    rows = torch.linspace(0, total - 1, min(count, total)).long()
    labels = {task: target[rows] for task, target in images.labels.items()}
    names = tuple(images.names[row] for row in rows.tolist())
    return images._replace(pixels=images.pixels[rows], labels=labels, names=names)


def reader(images: Images, classifier: Classifier) -> Callable[[int, int], Tensor]:
    """`read(start, stop)`: those images, ready for the classifier, on its device."""
    device = next(classifier.parameters()).device
    return lambda start, stop: data.ready(images, start, stop).to(device)
