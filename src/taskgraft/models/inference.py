"""A classifier's logits on a set of images. Measures, changes nothing."""

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

TURNS, LEAST = 15, 3  # passes whose median is taken; LEAST of them also where they take long
PATIENCE = 1.0  # seconds


def count_flops(classifier: Classifier, images: Images) -> int:
    """Operations of one forward pass on one image, a multiplication and an addition counted as two."""
    device = next(classifier.parameters()).device
    with eval_mode(classifier), torch.no_grad(), FlopCounterMode(display=False) as counter:
        classifier(data.normalize(images, 0, 1).to(device))
    return counter.get_total_flops()


def measure_latency(classifiers: Mapping[str, Classifier], images: Images) -> dict[str, float]:
    """Median seconds of one forward pass on one image, by classifier; they take turns, and modes are restored."""
    turns: list[dict[str, float]] = []
    end = time.perf_counter() + PATIENCE
    with eval_mode(*classifiers.values()), torch.inference_mode():
        while len(turns) <= LEAST or (len(turns) <= TURNS and time.perf_counter() < end):
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
    """Logits of every task on every image, in eval mode and full precision; modes are restored.

    Labels of tasks that the classifier lacks are left out. With `recall` the columns that the heads read are kept for
    later runs, or come from an earlier one; the logits are the same bits.
    """
    keep_freed_memory()
    device, count = next(classifier.parameters()).device, len(images.pixels)
    own = distributed.local_slice(count)
    known = recall_features(classifier, images, recall, size) if recall else None
    parts: list[Outputs] = [{task.name: torch.empty(0, len(task.classes)) for task in classifier.tasks}]
    with eval_mode(classifier), torch.inference_mode():
        for first in range(own.start, own.stop, size):
            last = min(first + size, own.stop)
            outputs = (
                classifier(data.normalize(images, first, last).to(device))
                if known is None
                else classifier.answer(known[first:last])
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
