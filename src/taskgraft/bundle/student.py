"""The plain network that a finished model is compressed into: one backbone, one head for each task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import timm
import torch
from torch import nn

from taskgraft import pytree, seeding
from taskgraft.bundle.architecture import create_network, input_args
from taskgraft.bundle.channels import CHANNELS
from taskgraft.bundle.format import Bundle
from taskgraft.bundle.loaders import open_parent
from taskgraft.errors import CheckpointError, InputError
from taskgraft.models import weight_merging
from taskgraft.models.classifier import Classifier
from taskgraft.models.side_networks import Tail
from taskgraft.results.files import fingerprint
from taskgraft.types import Params, Task

START = 0.25  # of the way from the shared weights to the branches': measured, docs/decisions.md 111


def has_random_weights(student: str | None) -> bool:
    """Return whether a student is given as a timm architecture, and not as a model; NAME.TAG means timm's weights."""
    return student is not None and timm.is_model(student) and "." not in student


def build_student(
    teacher: Bundle, tasks: Sequence[Task], newest: str, start: str | None, seed: int
) -> tuple[Bundle, list[str]]:
    """Build a plain classifier.

    Args:
        teacher: a finished model; a child with side networks, for example.
        tasks: tasks of the student.
        newest: the task whose head comes last, so that it counts as the new one.
        start: timm name of another architecture, with random weights; or a model whose backbone is taken; None = the
            teacher's own backbone, whose weights go START of the way to those of its branches.
        seed: random seed of weights that the teacher does not have.

    Returns:
        The student, and the tasks whose heads it could not take over from the teacher: they are zero.

    Raises:
        CheckpointError: there is no such architecture or model.
        InputError: the model takes other images than the teacher, or is more than one backbone.
    """
    classifier = teacher.classifier
    readable: set[tuple[int, int]] = set()  # columns of features that the student computes too
    if start and not has_random_weights(start):
        model = _open_start(start, teacher)
        network, width = model.classifier.backbone, model.classifier.width
        arch, head, options, origin = model.arch, model.head, model.model_args, model.digest
    else:
        arch, origin = start or teacher.arch, start or ""
        options = input_args(arch, teacher.preprocessing) if start else teacher.model_args
        network, head, width = _create(arch, seed, **options)
    if start is None:
        branches = _find_branches(classifier)
        network.load_state_dict(_start_between(pytree.state(classifier.backbone), list(branches.values())))
        readable = {(first, first + width) for first in (0, *branches)}
    order = [task for task in tasks if task.name != newest] + [task for task in tasks if task.name == newest]
    heads, missing = {}, []
    for task in order:
        parts = [
            (spec, linear)
            for spec, linear in zip(classifier.head_specs, classifier.linears(), strict=True)
            if spec.task == task.name
        ]
        linear = nn.Linear(width, len(task.classes))
        with torch.no_grad():
            if parts and all((spec.start, spec.stop) in readable for spec, _ in parts):
                linear.weight.copy_(torch.cat([part.weight for _, part in parts]))
                linear.bias.copy_(torch.cat([part.bias for _, part in parts]))
            else:
                linear.weight.zero_()
                linear.bias.zero_()
                missing.append(task.name)
        heads[task.name] = linear
    specs = Classifier(network, list(heads.values()), order, classifier.softmax).head_specs
    student = Classifier(network, list(heads.values()), tasks, classifier.softmax, head_specs=specs)
    student.to(next(classifier.parameters()).device)
    bundle = replace(
        teacher,
        classifier=student,
        arch=arch,
        head=head,
        model_args=options,
        memory={},
        digest=fingerprint([teacher.digest, origin, str(seed)]),
    )
    return bundle, missing


def _create(arch: str, seed: int, **options: Any) -> tuple[nn.Module, str, int]:
    """A network with random weights and without its head, the head's name and the number of features."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeding.derive(seed, "student"))
        network, head, _ = create_network(arch, 2, **options)
    layer = network.get_submodule(head)
    assert isinstance(layer, nn.Linear)
    network.set_submodule(head, nn.Identity())
    return network, head, layer.in_features


def _open_start(source: str, teacher: Bundle) -> Bundle:
    """Open the model that a student starts from, which will see the images as the teacher's preprocessing has them."""
    try:
        model = open_parent(source, unnamed=True)
    except CheckpointError as error:
        raise CheckpointError(f"--student: {str(error).removeprefix('parent ')}") from error
    if len(model.classifier.extras):
        raise InputError(f"--student {source} is more than one backbone, and the result is one; give a plain model")
    own, images = model.preprocessing.channels, teacher.preprocessing.channels
    if own != images:
        raise InputError(f"--student {source} takes {CHANNELS[own]} images, and the model {CHANNELS[images]} ones")
    return model


def _find_branches(classifier: Classifier) -> dict[int, Params]:
    """Weights of the backbone's copies of some stages, by the first of the features' columns that they compute."""
    stops = {spec.start: spec.stop for spec in classifier.head_specs}
    branches, start = {}, classifier.width
    for extra in classifier.extras:
        if start not in stops:  # a head that reads several side networks: where each begins is not known
            break
        if isinstance(extra, Tail) and stops[start] - start == classifier.width:
            branches[start] = pytree.state(extra.net)
        start = stops[start]
    return branches


def _start_between(shared: Params, branches: Sequence[Params]) -> Params:
    """Go START of the way from the backbone's weights to the mean of the branches' (compare Wortsman et al. 2022)."""
    if not branches:
        return shared
    ends = [{**shared, **branch} for branch in branches]
    return pytree.lerp(shared, weight_merging.average(ends), START)
