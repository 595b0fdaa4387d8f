"""Training an opened request in its run folder, and letting its method finish."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from taskgraft import distributed, metrics
from taskgraft.data import place
from taskgraft.data.dataset import write_split_lists
from taskgraft.methods import composition
from taskgraft.models.classifier import Classifier
from taskgraft.models.inference import imprint_added_classes
from taskgraft.pipeline import measuring
from taskgraft.pipeline.opening import Opened
from taskgraft.pipeline.parent_check import build_tensor_cache, predict_parent
from taskgraft.training.compilation import check_compiler
from taskgraft.training.loop import check_batch_size
from taskgraft.training.trainer import Evaluation, Fitted, Trainer, resolve_config
from taskgraft.types import Callbacks, Memoize, Memory, TrainingData


def fit(
    opened: Opened,
    out: Path,
    *,
    cache: Path | None,
    command: str,
    callbacks: Callbacks,
    until: int | None = None,
    trial_cache: Memoize | None = None,
) -> Fitted:
    """Train, from the newest checkpoint in the run folder if there is one.

    Args:
        opened: An opened request.
        out: The run folder, locked.
        cache: Folder of stored features and choices; None = not stored.
        command: The command that was typed.
        callbacks: Callbacks of the run.
        until: For a trial of a search: stop after this step.
        trial_cache: For a trial of a search: what trials share.

    Returns:
        The classifier with the weights of the best step, and the history.
    """
    check_compiler(opened.config, next(opened.child.parameters()).device)
    opened = predict_parent(opened, cache)
    opened = _place_images(opened)
    images, config = opened.images, opened.config
    assert images.new.train is not None
    tensor_cache = build_tensor_cache(opened, cache)
    opened.child.softmax = config.softmax

    def score(classifier: Classifier) -> float:
        evaluation = evaluate(opened, classifier)
        values = {**evaluation.agreement, **evaluation.accuracy}.values()
        return sum(values) / len(values)

    sources = TrainingData(
        images.new.train, images.old, opened.views, config.augment, config.seed, score, trial_cache, tensor_cache,
        opened.unlabeled if composition.has_teacher(opened.plan) else None, opened.teacher,
        config.fisher_precision,
    )  # fmt: skip
    method = composition.build(opened.plan)
    check_batch_size(opened.child, method, sources, config)
    config = resolve_config(out, opened.child, sources, config, cache, opened.list_settings(), command, callbacks)
    if until is None:  # a search's trials train on the images of the models that it selects
        distributed.broadcast(lambda: write_split_lists(out, images.new))
    if config.patience and not selection_tasks(opened):
        callbacks.info("--patience: not every old task has validation images, so no step counts as better than another")
    if config.softmax == "joint" and opened.old_tasks:
        callbacks.info("joint softmax: for reproduction only, since the new task suppresses the old ones")
    return Trainer(
        out,
        opened.child,
        method,
        sources,
        config,
        lambda classifier: evaluate(opened, classifier),
        past=opened.parent.memory,
        selection_tasks=selection_tasks(opened),
        callbacks=callbacks,
        until=until,
        evaluate_start=lambda classifier: evaluate(opened, classifier, tensor_cache),
    ).fit()


def _place_images(opened: Opened) -> Opened:
    """Move the pixels of each set to the device of training, if they fit there."""
    device = next(opened.child.parameters()).device
    new = opened.images.new
    splits = {name: getattr(new, name) and place(getattr(new, name), device) for name in ("train", "val")}
    old, old_val, unlabeled = (
        images and place(images, device) for images in (opened.images.old, opened.images.old_val, opened.unlabeled)
    )
    images = opened.images._replace(new=new._replace(**splits), old=old, old_val=old_val)
    return replace(opened, images=images, unlabeled=unlabeled)


def evaluate(opened: Opened, classifier: Classifier, tensor_cache: Memoize | None = None) -> Evaluation:
    """Evaluate a classifier on the validation images.

    Args:
        opened: A request with the parent's predictions.
        classifier: The classifier.
        tensor_cache: Stores features for later runs: for a classifier that has not been trained yet.
    """
    parent = opened.parent_predictions or {}
    frozen = not opened.is_refresh and measuring.old_outputs_are_frozen(classifier)
    old = parent.get("old") if frozen else None
    sets = measuring.predict_validation(classifier, opened.images, old, tensor_cache)
    agreement = measuring.compute_agreements(parent["new"], sets["new"]) if parent else {}
    if opened.is_refresh:  # its answers to the new images are meant to change
        agreement.pop(opened.request.task, None)
    new = {opened.result_name: metrics.accuracy(sets["new"], opened.request.task)} if opened.result_name else {}
    return Evaluation({**measuring.compute_accuracies(sets), **new}, agreement)


def finish(opened: Opened, fitted: Fitted) -> tuple[Classifier, Memory]:
    """Let the method finish: merge, interpolate, measure what the next extension needs.

    Returns:
        The child, which is the trained classifier changed in place, and what each method stores by name.
    """
    method, classifier, memory = composition.build(opened.plan), fitted.state.classifier, Memory()
    if method.finish:
        classifier, memory = method.finish(classifier, fitted.state.memory, fitted.sources)
    imprint_added_classes(classifier, fitted.sources)
    return classifier, memory


def selection_tasks(opened: Opened) -> list[str]:
    """Return the results whose mean accuracy selects the best step.

    Empty where an old task has no validation images: the last step is then the best, unless a teacher is to be
    imitated, with which agreement then counts.
    """
    old = [task.name for task in opened.old_tasks]
    measured = measuring.compute_accuracies(opened.parent_predictions or {})
    if len(measured) < len(old) and (opened.is_refresh or not opened.teacher):
        return []
    return [*old, *([opened.result_name] if opened.result_name else [])]
