"""Inference: logits on a set of images, FLOPs and latency."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from taskgraft import data, distributed
from taskgraft.allocator import keep_freed_memory
from taskgraft.models.classifier import Classifier
from taskgraft.models.eval_mode import eval_mode
from taskgraft.models.features import BATCH_SIZE, recall_features
from taskgraft.results.predictions import Predictions
from taskgraft.types import Images, Memoize, Outputs

PASSES, MIN_PASSES = 15, 3  # passes whose median is the latency; MIN_PASSES where they are slow
TIME_LIMIT = 1.0  # seconds


def count_flops(classifier: Classifier, images: Images) -> int:
    """Return the FLOPs of one forward pass on one image; a multiplication and an addition count as two."""
    device = next(classifier.parameters()).device
    with eval_mode(classifier), torch.no_grad(), FlopCounterMode(display=False) as counter:
        classifier(data.normalize(images, 0, 1).to(device))
    return counter.get_total_flops()


def measure_latency(classifiers: Mapping[str, Classifier], images: Images) -> dict[str, float]:
    """Return the median seconds of one forward pass on one image, by classifier; they take turns."""
    turns: list[dict[str, float]] = []
    end = time.perf_counter() + TIME_LIMIT
    with eval_mode(*classifiers.values()), torch.inference_mode():
        while len(turns) <= MIN_PASSES or (len(turns) <= PASSES and time.perf_counter() < end):
            turns.append({name: _seconds(one, images) for name, one in classifiers.items()})
    settled = turns[1:]  # the first pass sets things up
    return {name: round(float(np.median([turn[name] for turn in settled])), 6) for name in classifiers}


def _seconds(classifier: Classifier, images: Images) -> float:
    image = data.normalize(images, 0, 1).to(next(classifier.parameters()).device)
    start = time.perf_counter()
    for logits in classifier(image).values():
        logits.cpu()  # a device is waited for
    return time.perf_counter() - start


def predict(
    classifier: Classifier, images: Images, size: int = BATCH_SIZE, recall: Memoize | None = None
) -> Predictions:
    """Compute the logits of every task on every image, in eval mode and full precision; modes are restored.

    Args:
        classifier: The classifier.
        images: The images; labels of tasks that the classifier lacks are left out of the result.
        size: Batch size.
        recall: A cache for the features that the heads read; the logits are bit-identical with and without it.
    """
    keep_freed_memory()
    device, count = next(classifier.parameters()).device, len(images.pixels)
    own = distributed.local_slice(count)
    features = recall_features(classifier, images, recall, size) if recall else None
    parts: list[Outputs] = [{task.name: torch.empty(0, len(task.classes)) for task in classifier.tasks}]
    with eval_mode(classifier), torch.inference_mode():
        for first in range(own.start, own.stop, size):
            last = min(first + size, own.stop)
            outputs = (
                classifier(data.normalize(images, first, last).to(device))
                if features is None
                else classifier.logits(features[first:last])
            )
            parts.append({task: logits.float().cpu() for task, logits in outputs.items()})
    classes = {task.name: task.classes for task in classifier.tasks}
    return Predictions(
        classes,
        classifier.softmax,
        tuple(images.names),
        {task: target.numpy().astype(np.int64) for task, target in images.labels.items() if task in classes},
        {task: distributed.all_gather(torch.cat([part[task] for part in parts]), count).numpy() for task in classes},
    )
