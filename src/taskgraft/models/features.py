"""The features that the heads read, and extras that add to them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, fx, nn

from taskgraft import data, distributed, pytree
from taskgraft.allocator import keep_freed_memory
from taskgraft.config import Precision
from taskgraft.models.classifier import Classifier, connect_newest_head, newest_task, old_class_counts
from taskgraft.models.eval_mode import eval_mode
from taskgraft.models.tensor_cache import LARGEST_FILE, tensor_digest
from taskgraft.results.files import fingerprint
from taskgraft.types import Images, Memoize, Outputs, Params, TrainingData

BATCH_SIZE = 32  # for inference
RECALL = 0.9  # fraction of the added classes' training images that `balance_added_classes` gives to them


def compute_features(
    classifier: Classifier, images: Images, size: int = BATCH_SIZE, precision: Precision = "fp32"
) -> Tensor:
    """Compute the features that the heads read, in eval mode and without gradients; modes are restored.

    Returns:
        [N, D] float32, in whatever `precision` the network ran.
    """
    keep_freed_memory()
    read, count = image_reader(images, classifier), len(images.pixels)
    own = distributed.local_slice(count)
    device = next(classifier.parameters()).device
    arithmetic = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
    with eval_mode(classifier), torch.inference_mode(), arithmetic:
        parts = [
            classifier.features(read(first, min(first + size, own.stop))) for first in range(own.start, own.stop, size)
        ]
        if not parts:  # more processes than images: the width still has to be known
            parts = [classifier.features(read(0, 1))[:0]]
        features = distributed.all_gather(torch.cat(parts).float(), count)
    return features.clone()


def recall_features(
    classifier: Classifier,
    images: Images,
    recall: Memoize | None,
    size: int = BATCH_SIZE,
    precision: Precision = "fp32",
) -> Tensor:
    """Return what `compute_features` returns, from the cache after a run with equal pixels and weights.

    The cache key is a digest of the bits themselves.
    """
    width = max(part.stop for part in classifier.parts)
    if recall is None or distributed.world_size() > 1 or 4 * width * len(images.pixels) > LARGEST_FILE:
        return compute_features(classifier, images, size, precision)
    weights = {name: value for name, value in pytree.state(classifier).items() if not name.startswith("heads.")}
    plain = {"pixels": images.pixels, "mean": torch.tensor(images.mean), "std": torch.tensor(images.std)}
    name = f"columns {precision == 'bf16'} {size} {tensor_digest(weights)} {tensor_digest(plain)} {_shape(classifier)}"
    cached = recall(name, lambda: {"columns": compute_features(classifier, images, size, precision)})
    return cached["columns"].to(next(classifier.parameters()).device)


def _shape(classifier: Classifier) -> str:
    """Return a digest of what else decides the features: what is read where, by which extras."""
    code = classifier.backbone.code if isinstance(classifier.backbone, fx.GraphModule) else ""
    parts_of_key = [code]
    for extra in classifier.extras:
        plain = {name: value for name, value in vars(extra).items() if isinstance(value, str | int | float | tuple)}
        tails = [part.code for part in extra.children() if isinstance(part, fx.GraphModule)]
        parts_of_key.append(
            f"{type(extra).__name__} {sorted((name, str(value)) for name, value in plain.items())} {tails}"
        )
    return fingerprint(parts_of_key)


def compute_logits(classifier: Classifier, images: Tensor) -> Outputs:
    """Compute the logits of every task on preprocessed images [B, ...], in eval mode; modes are restored."""
    with eval_mode(classifier), torch.inference_mode():
        outputs: Outputs = classifier(images.to(next(classifier.parameters()).device))
    return outputs


def attach(classifier: Classifier, extra: nn.Module, images: Images) -> int:
    """Add an extra and let the newest head read its features, and those of extras that came with this head already.

    Returns:
        The first of its columns.
    """
    pair = sample_evenly(images, 2)
    before = compute_features(classifier, pair).shape[1]
    start = before if len(classifier.extras) == classifier.inherited_extras else classifier.parts[-1].start
    classifier.extras.append(extra.to(next(classifier.parameters()).device))
    connect_newest_head(classifier, start, compute_features(classifier, pair).shape[1])
    return before


def compute_once(sources: TrainingData, name: str, make: Callable[[], Params]) -> Params:
    """Return what `make` computes; in a search, what it computed for the first trial under this name."""
    return sources.trial_cache(name, make) if sources.trial_cache else make()


def balance_added_classes(classifier: Classifier, sources: TrainingData) -> None:
    """Shift the bias of classes added to an old task such that a fraction RECALL of their training images is theirs.

    Old and added classes have never competed on an old image; without a shift those with larger logits win everywhere.
    Where old images of the task were used in training, nothing is shifted.
    """
    task = newest_task(classifier)
    width, labels = old_class_counts(classifier).get(task, 0), sources.new.labels[newest_task(classifier)]
    seen = bool(((labels >= 0) & (labels < width)).any()) or (sources.old is not None and task in sources.old.labels)
    if not width or seen or not bool((labels >= width).any()):
        return
    columns = compute_features(classifier, sources.new)
    with torch.no_grad():
        logits = classifier.logits(columns)[task][(labels >= width).to(columns.device)]
        margin = logits[:, width:].max(1).values - logits[:, :width].max(1).values
        classifier.linears()[-1].bias.sub_(margin.quantile(1 - RECALL))


def sample_evenly(images: Images, count: int) -> Images:
    """Return `count` evenly spaced images of a set, because sets are ordered by class."""
    total = len(images.pixels)
    return images.select(torch.linspace(0, total - 1, min(count, total)).long())


def image_reader(images: Images, classifier: Classifier) -> Callable[[int, int], Tensor]:
    """Return `read(start, stop)`, which returns those images preprocessed, on the classifier's device."""
    device = next(classifier.parameters()).device
    return lambda start, stop: data.normalize(images, start, stop).to(device)
