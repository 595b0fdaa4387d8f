"""The parent on the validation images, before anything is trained: one that guesses was opened wrongly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from taskgraft import metrics
from taskgraft.errors import InputError
from taskgraft.metrics import chance_accuracy, wilson_interval
from taskgraft.models.tensor_cache import memoize_in
from taskgraft.pipeline import measuring
from taskgraft.pipeline.opening import Opened
from taskgraft.pipeline.request import Request
from taskgraft.results.record import versions
from taskgraft.training import precision
from taskgraft.types import Callbacks, Memoize

ONE_SIDED = 1.644854  # quantile of the normal distribution, 95 %
NEAR_CHANCE = 0.1  # fraction of the way from chance to no error, below which a parent is refused


def check_parent(opened: Opened, cache: Path | None, callbacks: Callbacks, *, strict: bool = True) -> Opened:
    """Evaluate the parent on the validation images, and check that it does better than guessing.

    Args:
        opened: An opened request.
        cache: Folder in which the parent's features are stored for later runs; None = not stored.
        callbacks: `info` is called with the parent's accuracy.
        strict: Whether a parent that guesses is an error, unless the request says otherwise.

    Returns:
        The request with the parent's predictions.

    Raises:
        InputError: The parent does no better than always predicting the most frequent class of an old task.
    """
    opened = predict_parent(opened, cache)
    sets = opened.parent_predictions
    assert sets is not None
    role = "teacher" if opened.student else "parent"
    if (opened.student and opened.result_name) or opened.is_refresh:
        accuracy, count = metrics.accuracy(sets["new"], opened.request.task), len(sets["new"].ids)
        callbacks.info(f"{role}: {opened.result_name} {accuracy:.1%} on {count} validation images")
    for task, accuracy in measuring.compute_accuracies(sets).items():
        labels = sets["old"].labels[task]
        count = int((labels >= 0).sum())
        callbacks.info(f"{role}: {task} {accuracy:.1%} on {count} validation images")
        chance = chance_accuracy(labels, len(sets["old"].classes[task]))
        if wilson_interval(accuracy, count, ONE_SIDED).low > chance:
            continue
        if accuracy >= chance + NEAR_CHANCE * (1 - chance):
            callbacks.info(
                f"{role}: not significantly better than always predicting the most frequent class ({chance:.1%}); "
                "use more validation images"
            )
        elif strict and isinstance(opened.request, Request) and opened.request.check_parent:
            raise InputError(
                f"the parent classifies {accuracy:.1%} of {count} validation images of {task} correctly, and always "
                f"predicting the most frequent class {chance:.1%}: its preprocessing is wrong "
                f"('{opened.parent.preprocessing.to_text()}', {opened.parent.preprocessing_source}), --labels is in "
                "another order, or --old-val has other images; fix --preprocessing, --labels or --old-val, or continue "
                "with --no-parent-check (Python: check_parent=False)"
            )
    return opened


def predict_parent(opened: Opened, cache: Path | None) -> Opened:
    """Add the parent's predictions on the validation images, unless they are there already."""
    if opened.parent_predictions is not None:
        return opened
    tensor_cache = build_tensor_cache(opened, cache)
    sets = measuring.predict_validation(opened.parent.classifier, opened.images, tensor_cache=tensor_cache)
    return replace(opened, parent_predictions=sets)


def build_tensor_cache(opened: Opened, cache: Path | None) -> Memoize | None:
    """Build the cache of what depends on the parent and the images alone; None for a training, whose network is new."""
    if cache is None or not opened.has_parent:
        return None
    parent = opened.parent
    hardware = precision.describe_hardware(next(parent.classifier.parameters()).device)
    identity = {**versions(), **hardware, **parent.model_args}
    return memoize_in(cache / "tensors", parent.arch, *(f"{name} {value}" for name, value in sorted(identity.items())))
