"""Opening what a request names: the parent or a new network, and the images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from taskgraft import distributed, seeding
from taskgraft.bundle import Bundle, open_parent
from taskgraft.bundle.architecture import create_network, input_args
from taskgraft.bundle.loaders import describe_origin, describe_preprocessing
from taskgraft.config import MANY_ADDED, TrainingConfig, resolve_steps, validate
from taskgraft.data import transforms
from taskgraft.data.task_images import TaskData, load_task_data, read_class_names
from taskgraft.data.unlabeled import load_unlabeled
from taskgraft.errors import InputError
from taskgraft.methods import composition, notation
from taskgraft.methods.presets import INTO_MANY, RECORDERS
from taskgraft.methods.protocol import Plan
from taskgraft.models.classifier import Classifier, grow, widen, wrap
from taskgraft.models.inference import imprinting_recall, sees_only_added_classes
from taskgraft.pipeline.measuring import name_result
from taskgraft.pipeline.request import MergeRequest, RefreshRequest, Request, TrainingRequest, validate_request
from taskgraft.pipeline.usefulness import describe_usefulness
from taskgraft.results.files import fingerprint
from taskgraft.results.predictions import Predictions
from taskgraft.types import Callbacks, Images, Task, Teacher

DEFAULT_MODEL = "resnet18"


@dataclass(frozen=True)
class Opened:
    """A checked request with everything that it names in memory.

    Attributes:
        request: The request.
        plan: Settings of each method by name.
        parent: The model that is extended; for a training the new, untrained one.
        old_tasks: Tasks that must not be forgotten; none for a training.
        child: The classifier to train, with outputs for all tasks.
        images: The images.
        parent_predictions: The parent's predictions on the validation images, by set; None before it was evaluated.
        unlabeled: Images without labels.
        teacher: Answers every task in the parent's place.
        student: For a compression, the plain model that takes the parent's place in the bundle.
        prepare: What is left to compute before the first step of a compression.
        baselines: For a merge, what merging the weights alone reaches: a value for each task.
        notes: What a reader must know of the images, for the record.
    """

    request: Request | TrainingRequest
    plan: Plan
    parent: Bundle
    old_tasks: tuple[Task, ...]
    child: Classifier
    images: TaskData
    parent_predictions: dict[str, Predictions] | None = None
    unlabeled: Images | None = None
    teacher: Teacher | None = None
    student: Bundle | None = None
    prepare: Callable[[Opened], Opened] | None = None
    baselines: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def method(self) -> str:
        """The method in its notation; "train" for a training."""
        return self.request.method if isinstance(self.request, Request) else "train"

    @property
    def result_name(self) -> str:
        """The name of the results on the new images; empty for a merge, whose images have no labels."""
        if isinstance(self.request, MergeRequest):
            return ""
        return name_result(self.request.task, [task.name for task in self.old_tasks], refreshed=self.is_refresh)

    @property
    def has_parent(self) -> bool:
        """Whether a model with tasks came before, which a compression of one task has too; not of a training."""
        return bool(self.old_tasks) or self.student is not None

    @property
    def is_refresh(self) -> bool:
        """Whether the new images are of classes that the task has already."""
        return isinstance(self.request, RefreshRequest)

    @property
    def config(self) -> TrainingConfig:
        """The training settings of the run: those of the request, with the number of steps that its epochs come to.

        Where training could change nothing, there is one step.
        """
        config, train = self._steps_resolved, self.images.new.train
        assert train is not None
        if not sees_only_added_classes(self.child, train, self.images.old):
            return config
        frozen = all(settings.traits.freezes_old and not settings.traits.attaches for settings in self.plan.values())
        has_one_class = self.child.linears()[-1].out_features == 1  # which has nothing to be told from
        return replace(config, steps=1, head_steps=0, warmup_steps=0) if frozen or has_one_class else config

    @property
    def views(self) -> int:
        """The number of fixed views of an image that training reaches; methods compute no more per view."""
        assert self.images.new.train is not None
        config, count = self._steps_resolved, len(self.images.new.train.pixels)
        return min(config.views, -(-config.steps * config.batch_size // count))

    @property
    def _steps_resolved(self) -> TrainingConfig:
        assert self.images.new.train is not None
        config, halved = self.request.config, self.unlabeled is not None and composition.has_teacher(self.plan)
        size = config.batch_size - config.batch_size // 2 if halved else config.batch_size
        return resolve_steps(config, len(self.images.new.train.pixels), size)

    def describe_epochs(self) -> str:
        """Describe where the number of steps comes from; "" where it was given, or there is nothing to train."""
        epochs, train = self.request.config.epochs, self.images.new.train
        assert train is not None
        counts = epochs and self.config.steps == self._steps_resolved.steps
        return f"{epochs:g} epochs of {len(train.pixels):,} images" if counts else ""

    def list_settings(self) -> dict[str, Any]:
        """Return what must be equal for a run to be the same run."""
        request = self.request
        if isinstance(request, Request):
            source = {"method": request.method, "parent": self.parent.digest}
            source |= {"student": self.student.digest} if self.student else {}
        else:
            source = {"model": self.parent.digest, "keep": request.keep}
        return {
            "task": request.task,
            **source,
            "config": asdict(request.config),
            "preprocessing": self.parent.preprocessing.to_text(),
            "data": {name: description["fingerprint"] for name, description in self.images.described.items()},
        }


def open_request(request: Request | TrainingRequest, cache: Path | None, callbacks: Callbacks) -> Opened:
    """Check a request and open its model and images.

    Args:
        request: An extension or a training.
        cache: Folder of decoded pixels; None = in memory only.
        callbacks: `info` is called with what was inferred.

    Raises:
        TaskgraftError: A value, the model or the images cannot be used.
    """
    if isinstance(request, Request):
        return _open_extension(request, cache, callbacks)
    return _open_training(request, cache, callbacks)


def _open_extension(request: Request, cache: Path | None, callbacks: Callbacks) -> Opened:
    is_named = bool(request.method)
    request, plan = validate_request(request)
    parent = open_model(request, "parent", cache, callbacks)
    parent.classifier.to(distributed.device())
    old_tasks, config = tuple(parent.classifier.tasks), request.config
    if request.into:
        child = widen(parent.classifier, request.task, read_class_names(request.data, request.task), config.seed)
        classes = next(task.classes for task in child.tasks if task.name == request.task)
        if not is_named and child.linears()[-1].out_features >= MANY_ADDED:
            request, plan = validate_request(replace(request, method=INTO_MANY))
    else:
        if request.task in [task.name for task in old_tasks]:
            grow(parent.classifier, Task(request.task, ("", "")), 0)  # raises, before images are read
        child, classes = None, None
    images, parent = load_images(request, parent, old_tasks, classes, cache, callbacks)
    if child is None:
        new_task = images.new.tasks[0]
        for task in old_tasks:
            if set(task.classes) == set(new_task.classes):
                callbacks.info(
                    f"these classes already exist in task {task.name}; use --into {task.name} if they are the same"
                )
        child = grow(parent.classifier, new_task, config.seed)
    opened = _note_imprinting(Opened(request, plan, parent, old_tasks, child, images), callbacks)
    return with_unlabeled(opened, request, cache, callbacks)


def open_model(request: Request, role: str, cache: Path | None, callbacks: Callbacks) -> Bundle:
    """Open the model that a request names, and say what was inferred.

    Args:
        request: The request.
        role: What the model is in it, for these lines.
        cache: Folder of decoded pixels; None = in memory only.
        callbacks: `info` is called with the lines.

    Raises:
        TaskgraftError: The model cannot be opened.
    """
    model = open_parent(
        request.parent,
        arch=request.arch,
        labels=request.labels,
        preprocessing=request.preprocessing,
        task=request.parent_task,
        cache=cache,
    )
    for line in model.notes:
        callbacks.info(f"{role}: {line}")
    return model


def load_images(
    request: Request,
    model: Bundle,
    tasks: Sequence[Task],
    classes: Sequence[str] | None,
    cache: Path | None,
    callbacks: Callbacks,
) -> tuple[TaskData, Bundle]:
    """Load the labeled images of a request.

    Args:
        request: The request, whose task is known.
        model: The model that they are prepared for.
        tasks: Tasks that other images may belong to.
        classes: Class names of the request's task, where it exists already.
        cache: Folder of decoded pixels; None = in memory only.
        callbacks: Progress callbacks.

    Returns:
        The images, and the model with the bits of 16-bit files in its preprocessing.

    Raises:
        DataError: Images cannot be used.
    """
    images = distributed.main_process_first(lambda: load_task_data(
        request.data, request.task, tasks, model.preprocessing, classes=classes, old=request.old,
        old_val=request.old_val, seed=request.config.seed, cache=cache, callbacks=callbacks, find_bits=True,
    ))  # fmt: skip
    return images, with_bits(model, images.new.bits)


def with_bits(model: Bundle, bits: int | None) -> Bundle:
    """Return a model whose preprocessing says how many bits 16-bit files use."""
    return replace(model, preprocessing=model.preprocessing._replace(bits=bits))


def _note_imprinting(opened: Opened, callbacks: Callbacks) -> Opened:
    """Say how classes are added where no old image is there."""
    train = opened.images.new.train
    assert train is not None
    if not sees_only_added_classes(opened.child, train, opened.images.old):
        return opened
    attaches = any(settings.traits.attaches for settings in opened.plan.values())
    recall = imprinting_recall(opened.child.linears()[-1].out_features, side_network=attaches)
    note = (
        "no image of an old class: the weights of the added classes are made from the features of their images, and a "
        f"bias assigns {recall:.0%} of these to them; only --old-val tells how many old images they take"
    )
    callbacks.info(note)
    return replace(opened, notes=(*opened.notes, note))


def with_unlabeled(opened: Opened, request: Request, cache: Path | None, callbacks: Callbacks) -> Opened:
    """Add the request's images without labels.

    Raises:
        InputError: The method has no teacher, which alone could say what they show.
    """
    if not request.unlabeled:
        return opened
    if not composition.has_teacher(opened.plan):
        raise InputError(
            f"--unlabeled: {request.method} has no teacher, so it cannot learn from images without labels; add distill "
            "to --method, or leave --unlabeled out"
        )
    unlabeled, _, described, bits = distributed.main_process_first(
        lambda: load_unlabeled(request.unlabeled, opened.parent.preprocessing, cache, callbacks)
    )
    parent, student = with_bits(opened.parent, bits), opened.student and with_bits(opened.student, bits)
    images = opened.images._replace(described={**opened.images.described, **described})
    notes = describe_usefulness(opened.parent.classifier, unlabeled, "the unlabeled images")
    for note in notes:
        callbacks.info(note)
    return replace(
        opened,
        parent=parent,
        student=student,
        images=images,
        unlabeled=unlabeled,
        notes=(*opened.notes, *notes),
    )


def change_method(opened: Opened, method: str, config: TrainingConfig) -> Opened:
    """Change method and training settings of an opened extension; nothing is opened again.

    Args:
        opened: An opened extension.
        method: Method in its notation.
        config: Training settings, with the same seed.

    Raises:
        InputError: Method or settings are not allowed.
    """
    assert isinstance(opened.request, Request)
    request, plan = validate_request(replace(opened.request, method=method, config=config))
    return replace(opened, request=request, plan=plan)


def _open_training(request: TrainingRequest, cache: Path | None, callbacks: Callbacks) -> Opened:
    config = validate(request.config, request.default_config)
    plan = notation.parse(request.keep) if request.keep else {}
    unsuitable = [name for name, settings in plan.items() if not settings.traits.records]
    if unsuitable:
        raise InputError(
            f"--keep {request.keep!r}: {unsuitable[0]} records nothing during training; use {', '.join(RECORDERS)}"
        )
    model = request.model or DEFAULT_MODEL
    source = _open_weights(request, callbacks) if request.weights else None
    preprocessing = source.preprocessing if source else create_network(model, 2)[2]
    if request.preprocessing:
        if not source and (channels := transforms.find_channels(request.preprocessing)):
            preprocessing = preprocessing.with_channels(channels)
        preprocessing = transforms.parse_preprocessing(request.preprocessing, preprocessing)
    if not source:  # `open_parent` reports that of the weights
        origin = describe_origin(request.preprocessing, f"timm's default for {model}")
        callbacks.info(describe_preprocessing(preprocessing, origin))
    images = distributed.main_process_first(lambda: load_task_data(
        request.data, request.task, (), preprocessing, old=None, old_val=(), seed=config.seed, cache=cache,
        callbacks=callbacks, find_bits=True,
    ))  # fmt: skip
    preprocessing = preprocessing._replace(bits=images.new.bits)
    task = images.new.tasks[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeding.derive(config.seed, "weights"))
        if source:
            head = torch.nn.Linear(source.classifier.width, len(task.classes))
            classifier = Classifier(source.classifier.backbone, [head], [task], config.softmax)
            bundle = replace(
                source, classifier=classifier, preprocessing=preprocessing, memory={}, cards={}, folder=None
            )
        else:
            model_args = input_args(model, preprocessing)
            network, head, _ = create_network(model, len(task.classes), **model_args)
            classifier, digest = wrap(network, head, [task], config.softmax), fingerprint([model, str(config.seed)])
            bundle = Bundle(classifier, preprocessing, {}, model, digest, model, head, model_args=model_args)
    classifier.to(distributed.device())
    return Opened(request, plan, bundle, (), classifier, images, {})


def _open_weights(request: TrainingRequest, callbacks: Callbacks) -> Bundle:
    """Open the model whose backbone is trained further, which must have the architecture that was named."""
    assert request.weights is not None
    bundle = open_parent(request.weights, arch=request.model, preprocessing=request.preprocessing, unnamed=True)
    if request.model and request.model.partition(".")[0] != bundle.arch.partition(".")[0]:
        raise InputError(f"--weights {request.weights} is a {bundle.arch}, not a {request.model}; leave out --model")
    for line in bundle.notes:
        callbacks.info(f"weights: {line}")
    return bundle
