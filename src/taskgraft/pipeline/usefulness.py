"""Whether images without labels are of use: how many classes the teacher tells apart in them."""

from __future__ import annotations

import numpy as np

from taskgraft.metrics import probabilities
from taskgraft.models.classifier import Classifier
from taskgraft.models.inference import predict, sample_evenly
from taskgraft.results.predictions import Predictions
from taskgraft.types import Images

SAMPLE = 500  # images that the teacher is asked about
USELESS = 0.05  # of the information that would name the class: noise and images of another world give 0 to 0.01


def describe_usefulness(teacher: Classifier, images: Images, source: str) -> list[str]:
    """Describe for each task what the teacher sees in a sample of images, with a warning where it is nothing.

    The measure is the mutual information between image and predicted class, as a number of classes: the Inception
    Score (Salimans et al. 2016) with the teacher as the network.

    Args:
        teacher: Answers the tasks.
        images: Images without labels.
        source: What they are called in the description.
    """
    predictions = predict(teacher, sample_evenly(images, SAMPLE))
    return [_describe_task(task, predictions, source) for task in predictions.classes]


def measure_information(predictions: Predictions, task: str) -> tuple[float, float]:
    """Measure how much a classifier's answers differ between images, and how uncertain they are.

    Returns:
        The mutual information of image and class in nats, between 0 and log K; and the mean entropy of an answer as a
        fraction of log K.
    """
    p = probabilities(predictions.logits[task])
    entropy = float(_entropy(p).mean())
    return max(0.0, float(_entropy(p.mean(0))) - entropy), entropy / float(np.log(p.shape[1]))


def _entropy(p: np.ndarray) -> np.ndarray:
    return -(p * np.log(np.maximum(p, 1e-30))).sum(-1)


def _describe_task(task: str, predictions: Predictions, source: str) -> str:
    information, entropy = measure_information(predictions, task)
    logits = predictions.logits[task]
    count, size = len(np.unique(logits.argmax(1))), logits.shape[1]
    text = (
        f"{task}: the teacher tells {np.exp(information):.1f} of {size} classes apart in {source} (it answers with "
        f"{count}, entropy {entropy:.0%} of the maximum)"
    )
    if information < USELESS * np.log(size):
        text += (
            f"; they say next to nothing about {task}: use images that resemble the ones it was trained on, unless the "
            "model is as unsure of those"
        )
    return text
