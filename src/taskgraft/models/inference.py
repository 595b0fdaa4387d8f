"""What classifiers compute on sets of images: features, logits, predictions, FLOPs and latency."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from taskgraft import data, distributed, pytree
from taskgraft.allocator import keep_freed_memory
from taskgraft.config import MANY_ADDED, Precision
from taskgraft.errors import InputError, first_line
from taskgraft.models.classifier import Classifier, connect_newest_head, newest_task, old_class_counts
from taskgraft.models.eval_mode import eval_mode
from taskgraft.models.tensor_cache import MAX_FILE_SIZE, tensor_digest
from taskgraft.results.files import fingerprint
from taskgraft.results.predictions import Predictions
from taskgraft.types import Images, Memoize, Outputs, Params, TrainingData

BATCH_SIZE = 32
# How `imprint_added_classes` weighs added classes against old ones, of which it sees no image: docs/decisions.md, 112.
RECALL = 0.6  # fraction of the added classes' training images that is given to them
RECALL_OF_MANY = (
    0.8  # the same for features that were trained on many of them, and know these images better than others
)
SHRINKAGE = 1.0  # added to the covariance of features, relative to their mean variance
PASSES, MIN_PASSES = 15, 3  # forward passes whose median is the latency; MIN_PASSES where they are slow
TIME_LIMIT = 1.0  # seconds of latency measurement


def predict(
    classifier: Classifier, images: Images, size: int = BATCH_SIZE, cache: Memoize | None = None
) -> Predictions:
    """Compute the logits of every task on every image, in eval mode and full precision; modes are restored.

    Args:
        classifier: The classifier.
        images: The images; labels of tasks that the classifier lacks are left out of the result.
        size: Batch size.
        cache: A cache for the features that the heads read; the logits are bit-identical with and without it.
    """
    keep_freed_memory()
    read, count = image_reader(images, classifier), len(images.pixels)
    rows = distributed.local_slice(count)
    features = cached_features(classifier, images, cache, size) if cache else None
    batches: list[Outputs] = [{task.name: torch.empty(0, len(task.classes)) for task in classifier.tasks}]
    with eval_mode(classifier), torch.inference_mode():
        for start in range(rows.start, rows.stop, size):
            stop = min(start + size, rows.stop)
            outputs = classifier(read(start, stop)) if features is None else classifier.logits(features[start:stop])
            batches.append({task: logits.float().cpu() for task, logits in outputs.items()})
    classes = {task.name: task.classes for task in classifier.tasks}
    return Predictions(
        classes,
        classifier.softmax,
        tuple(images.names),
        {task: target.numpy().astype(np.int64) for task, target in images.labels.items() if task in classes},
        {
            task: distributed.all_gather(torch.cat([batch[task] for batch in batches]), count).numpy()
            for task in classes
        },
    )


def compute_logits(classifier: Classifier, images: Tensor) -> Outputs:
    """Compute the logits of every task on preprocessed images [B, ...], in eval mode; modes are restored."""
    with eval_mode(classifier), torch.inference_mode():
        outputs: Outputs = classifier(images.to(next(classifier.parameters()).device))
    return outputs


def check_inputs(classifier: Classifier, images: Images) -> None:
    """Run the classifier on one image, in eval mode; modes are restored.

    Raises:
        InputError: It cannot take inputs of this shape.
    """
    sample = image_reader(images, classifier)(0, 1)
    try:
        compute_logits(classifier, sample)
    except torch.OutOfMemoryError:
        raise
    except (AssertionError, RuntimeError, ValueError) as error:
        raise InputError(
            f"the model cannot take inputs of shape {list(sample.shape[1:])}: {first_line(error)}; give them as it was "
            "trained on"
        ) from error


def compute_features(
    classifier: Classifier, images: Images, size: int = BATCH_SIZE, precision: Precision = "fp32"
) -> Tensor:
    """Compute the features that the heads read, in eval mode and without gradients; modes are restored.

    Returns:
        [N, D] float32, in whatever `precision` the network ran.
    """
    keep_freed_memory()
    read, count = image_reader(images, classifier), len(images.pixels)
    rows = distributed.local_slice(count)
    device = next(classifier.parameters()).device
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
    with eval_mode(classifier), torch.inference_mode(), autocast:
        batches = [
            classifier.features(read(start, min(start + size, rows.stop)))
            for start in range(rows.start, rows.stop, size)
        ]
        if not batches:  # more processes than images: the width still has to be known
            batches = [classifier.features(read(0, 1))[:0]]
        features = distributed.all_gather(torch.cat(batches).float(), count)
    return features.clone()


def cached_features(
    classifier: Classifier,
    images: Images,
    cache: Memoize | None,
    size: int = BATCH_SIZE,
    precision: Precision = "fp32",
) -> Tensor:
    """Return what `compute_features` returns, from the cache after a run with equal pixels and weights.

    The cache key is a digest of the bits themselves.
    """
    width = max(spec.stop for spec in classifier.head_specs)
    if cache is None or distributed.world_size() > 1 or 4 * width * len(images.pixels) > MAX_FILE_SIZE:
        return compute_features(classifier, images, size, precision)
    weights = {name: value for name, value in pytree.state(classifier).items() if not name.startswith("heads.")}
    inputs = {"pixels": images.pixels, "mean": torch.tensor(images.mean), "std": torch.tensor(images.std)}
    digests = f"{tensor_digest(weights)} {tensor_digest(inputs)} {_architecture_digest(classifier)}"
    name = f"columns {precision == 'bf16'} {size} {digests}"
    cached = cache(name, lambda: {"columns": compute_features(classifier, images, size, precision)})
    return cached["columns"].to(next(classifier.parameters()).device)


def _architecture_digest(classifier: Classifier) -> str:
    """A digest of what else decides the features: the traced code, and the settings of the side networks."""
    descriptions = [classifier.backbone.code if isinstance(classifier.backbone, fx.GraphModule) else ""]
    for extra in classifier.extras:
        settings = {name: value for name, value in vars(extra).items() if isinstance(value, str | int | float | tuple)}
        code = [child.code for child in extra.children() if isinstance(child, fx.GraphModule)]
        descriptions.append(
            f"{type(extra).__name__} {sorted((name, str(value)) for name, value in settings.items())} {code}"
        )
    return fingerprint(descriptions)


def compute_once(sources: TrainingData, name: str, compute: Callable[[], Params]) -> Params:
    """Return the result of `compute`; in a search, that of the first trial under this name."""
    return sources.trial_cache(name, compute) if sources.trial_cache else compute()


def attach(classifier: Classifier, extra: nn.Module, images: Images) -> int:
    """Add a side network and let the newest head read its features, and those of others that came with this head.

    Returns:
        The first column of its features.
    """
    samples = sample_evenly(images, 2)
    column = compute_features(classifier, samples).shape[1]
    start = column if len(classifier.extras) == classifier.inherited_extras else classifier.head_specs[-1].start
    classifier.extras.append(extra.to(next(classifier.parameters()).device))
    connect_newest_head(classifier, start, compute_features(classifier, samples).shape[1])
    return column


def sees_only_added_classes(classifier: Classifier, new: Images, old: Images | None) -> bool:
    """Whether the newest head adds classes to an old task of which no image is there."""
    task = newest_task(classifier)
    old_classes = old_class_counts(classifier).get(task, 0)
    if not old_classes:
        return False
    labels = new.labels[task]
    saw_old = bool(((labels >= 0) & (labels < old_classes)).any()) or (old is not None and task in old.labels)
    return not saw_old and bool((labels >= old_classes).any())


def imprinting_recall(added: int, *, side_network: bool) -> float:
    """Return the fraction of the added classes' training images that `imprint_added_classes` gives to them.

    Args:
        added: Number of added classes.
        side_network: Whether their head reads features that were trained on them.
    """
    return RECALL_OF_MANY if side_network and added >= MANY_ADDED else RECALL


def imprint_added_classes(classifier: Classifier, sources: TrainingData) -> None:
    """Make the weights of classes that were added to an old task from the features of their images.

    Old and added classes never compete on an old image, so that weights trained on the added ones alone do not know
    what is not theirs. A row is a class's mean of features (imprinting, Qi et al. 2018), divided by their shrunken
    covariance within classes as in linear discriminant analysis, and as long as the old rows. One bias gives the
    fraction `imprinting_recall` of the training images to the added classes. Nothing changes where old images of the
    task were used in training.
    """
    if not sees_only_added_classes(classifier, sources.new, sources.old):
        return
    task, spec, head = newest_task(classifier), classifier.head_specs[-1], classifier.linears()[-1]
    labels, old_classes = sources.new.labels[task], old_class_counts(classifier)[task]
    heads = zip(classifier.head_specs[:-1], classifier.linears()[:-1], strict=True)
    length = torch.cat([old.weight.norm(dim=1) for other, old in heads if other.task == task]).mean()
    features = compute_features(classifier, sources.new)
    with torch.no_grad():
        added = {row: data.take(features, labels == old_classes + row) for row in range(head.out_features)}
        own = {row: values[:, spec.start : spec.stop].double() for row, values in added.items() if len(values)}
        spread = torch.cat([values - values.mean(0) for values in own.values()])
        covariance = spread.mT @ spread / len(spread)
        covariance.diagonal().add_(SHRINKAGE * covariance.diagonal().mean() + 1e-12)
        means = torch.stack([values.mean(0) for values in own.values()])
        rows = torch.linalg.solve(covariance, means.mT).mT
        rows *= length / rows.norm(dim=1, keepdim=True).clamp(min=1e-12)
        head.weight[list(own)] = rows.to(head.weight)
        head.bias.zero_()
        logits = classifier.logits(data.take(features, labels >= old_classes))[task]
        margin = logits[:, old_classes:].max(1).values - logits[:, :old_classes].max(1).values
        recall = imprinting_recall(head.out_features, side_network=spec.start >= classifier.width)
        head.bias.sub_(margin.quantile(1 - recall))


def sample_evenly(images: Images, count: int) -> Images:
    """Return `count` evenly spaced images of a set, because sets are ordered by class."""
    total = len(images.pixels)
    return images.select(torch.linspace(0, total - 1, min(count, total)).long())


def image_reader(images: Images, classifier: Classifier) -> Callable[[int, int], Tensor]:
    """Return `read(start, stop)`, which returns those images preprocessed, on the classifier's device."""
    device = next(classifier.parameters()).device
    return lambda start, stop: data.normalize(images, start, stop, device)


def count_flops(classifier: Classifier, images: Images) -> int:
    """Return the FLOPs of one forward pass on one image; a multiplication and an addition count as two."""
    with eval_mode(classifier), torch.no_grad(), FlopCounterMode(display=False) as counter:
        classifier(image_reader(images, classifier)(0, 1))
    return counter.get_total_flops()


def measure_latency(classifiers: Mapping[str, Classifier], images: Images) -> dict[str, float]:
    """Return the median seconds of one forward pass on one image, by classifier; they take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in classifiers}
    passes, end = 0, time.perf_counter() + TIME_LIMIT
    with eval_mode(*classifiers.values()), torch.inference_mode():
        while passes <= MIN_PASSES or (passes <= PASSES and time.perf_counter() < end):
            for name, classifier in classifiers.items():
                image = image_reader(images, classifier)(0, 1)
                start = time.perf_counter()
                for logits in classifier(image).values():
                    logits.cpu()  # waits for the device
                seconds[name].append(time.perf_counter() - start)
            passes += 1
    return {name: round(float(np.median(values[1:])), 6) for name, values in seconds.items()}  # the first is warm-up
