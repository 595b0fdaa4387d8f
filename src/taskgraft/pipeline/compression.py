"""Opening a compression: a finished model teaches a plain network all its tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import update_bn

from taskgraft import distributed, seeding
from taskgraft.bundle.format import Bundle
from taskgraft.bundle.student import build_student, has_random_weights
from taskgraft.data.task_images import match_task
from taskgraft.errors import InputError
from taskgraft.methods import composition
from taskgraft.methods.protocol import Plan
from taskgraft.models.classifier import Classifier
from taskgraft.models.eval_mode import eval_mode
from taskgraft.models.inference import BATCH_SIZE, check_inputs, compute_features, image_reader, predict, sample_evenly
from taskgraft.pipeline.opening import Opened, load_images, open_model, with_unlabeled
from taskgraft.pipeline.request import CompressionRequest, Request, validate_request
from taskgraft.types import Callbacks, Images, Outputs, Task, Teacher

RIDGE = 1e-3  # of the mean eigenvalue of the features' covariance
MAX_IMAGES = 4000  # of each set, for the start of the heads
RANDOM_LR = 0.002  # for a student from random weights: measured, docs/decisions.md 165


def open_compression(request: CompressionRequest, cache: Path | None, callbacks: Callbacks) -> Opened:
    """Open the teacher and the images, and build the student.

    Args:
        request: A compression.
        cache: Folder of decoded pixels; None = in memory only.
        callbacks: `info` is called with what was inferred.

    Raises:
        TaskgraftError: A value, the model or the images cannot be used.
    """
    teacher = open_model(request, "teacher", cache, callbacks)
    tasks = tuple(teacher.classifier.tasks)
    task = match_task(request.data, tasks)
    request, plan = validate_request(replace(request, task=task.name))
    require_teaching(request, plan)
    if request.config.softmax != teacher.classifier.softmax:
        raise InputError(
            f"the model was trained with --softmax {teacher.classifier.softmax}; compress it with the same"
        )
    teacher.classifier.to(distributed.device()).requires_grad_(False)
    others = tuple(other for other in tasks if other.name != task.name)
    images, teacher = load_images(request, teacher, others, task.classes, cache, callbacks)
    student, missing = open_student(request, teacher, tasks, request.student, images.new.train, callbacks)

    def prepare(opened: Opened) -> Opened:
        sets = [one for one in (images.new.train, opened.unlabeled) if one is not None]
        start_student(student.classifier, request.student, missing, sets, teacher.classifier)
        return opened

    opened = Opened(
        request, plan, teacher, others, student.classifier, images,
        teacher=answer(teacher.classifier), student=student, prepare=prepare,
    )  # fmt: skip
    return with_unlabeled(opened, request, cache, callbacks)


def require_teaching(request: Request, plan: Plan) -> None:
    """Check that a method can teach one backbone.

    Raises:
        InputError: The method has no teacher, or adds a side network.
    """
    if not composition.has_teacher(plan):
        raise InputError(f"--method {request.method} has no teacher, so it learns nothing from the model; add distill")
    attaching = [name for name, settings in plan.items() if settings.traits.attaches]
    if attaching:
        raise InputError(f"--method: {attaching[0]} adds a side network, and the result is one backbone; leave it out")


def answer(classifier: Classifier) -> Teacher:
    """Return a function that computes a classifier's logits, in eval mode whatever mode it is in."""

    def teach(images: Tensor) -> Outputs:
        with eval_mode(classifier):
            outputs: Outputs = classifier(images)
        return outputs

    return teach


def open_student(
    request: Request,
    model: Bundle,
    tasks: Sequence[Task],
    name: str | None,
    images: Images | None,
    callbacks: Callbacks,
) -> tuple[Bundle, list[str]]:
    """Build a student, and check that it takes images as its teacher does.

    Args:
        request: What is asked for; its task is the newest.
        model: The model whose backbone and preprocessing the student has where nothing else is asked for.
        tasks: The student's tasks.
        name: The student that is asked for, as `--student` has it.
        images: Images as the teacher takes them.
        callbacks: `info` is called with what a student from random weights needs.

    Returns:
        The student, and the tasks whose heads it could not take over.

    Raises:
        TaskgraftError: The student cannot be opened, or not take the images.
    """
    student, missing = build_student(model, tasks, request.task, name, request.config.seed)
    assert images is not None
    if name:
        try:
            check_inputs(student.classifier, images)
        except InputError as error:
            shape = " × ".join(map(str, images.pixels.shape[1:]))
            raise InputError(
                f"--student {name} cannot take images of {shape}, as the model does; choose another"
            ) from error
    if has_random_weights(name) and request.config.lr == request.default_config.lr:
        callbacks.info(
            "the student starts from random weights: more --steps, and a higher --lr such as "
            f"{RANDOM_LR}, suit it better"
        )
    return student, missing


def start_student(
    student: Classifier, name: str | None, missing: Sequence[str], sets: Sequence[Images], teacher: Classifier
) -> None:
    """Compute what a student starts with besides its weights; it is changed in place.

    Args:
        student: A plain classifier.
        name: The student that is asked for, as `--student` has it.
        missing: Tasks whose heads are fitted.
        sets: Images.
        teacher: Answers the tasks.
    """
    if has_random_weights(name):
        estimate_batchnorm(student, sets)
    fit_heads(student, missing, sets, teacher)


def estimate_batchnorm(student: Classifier, sets: Sequence[Images]) -> None:
    """Set the running statistics of a network with random weights to those of images; they are changed in place.

    The statistics are then frozen like inherited ones: blended batches would move them away from those of images.

    Args:
        student: A plain classifier.
        sets: Images.
    """
    samples = [sample_evenly(images, MAX_IMAGES) for images in sets]
    readers = [(image_reader(images, student), len(images.pixels)) for images in samples]
    batches = (
        read(start, min(start + BATCH_SIZE, count))
        for read, count in readers
        for start in range(0, count, BATCH_SIZE)
        if count - start > 1 or count == 1
    )
    device = next(student.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):  # dropout draws from it
        torch.manual_seed(seeding.derive(0, "statistics"))
        update_bn(batches, student)


def fit_heads(student: Classifier, tasks: Sequence[str], sets: Sequence[Images], teacher: Classifier) -> None:
    """Fit heads to the teacher's logits by ridge regression on the student's features; they are changed in place.

    Args:
        student: A plain classifier.
        tasks: Tasks whose heads are fitted.
        sets: Images.
        teacher: Answers the tasks.
    """
    if not tasks:
        return
    sets = [sample_evenly(images, MAX_IMAGES) for images in sets]
    features = torch.cat([compute_features(student, images) for images in sets])
    predictions = [predict(teacher, images).logits for images in sets]
    logits = {task: torch.from_numpy(np.concatenate([one[task] for one in predictions])).to(features) for task in tasks}
    mean = features.mean(0)
    centered = (features - mean).double()
    covariance = centered.mT @ centered
    covariance.diagonal().add_(RIDGE * covariance.diagonal().mean() + 1e-12)
    for spec, head in zip(student.head_specs, student.linears(), strict=True):
        if spec.task in logits:
            target = logits[spec.task]
            weight = torch.linalg.solve(covariance, centered.mT @ (target - target.mean(0)).double()).mT.float()
            with torch.no_grad():
                head.weight.copy_(weight)
                head.bias.copy_(target.mean(0) - weight @ mean)
