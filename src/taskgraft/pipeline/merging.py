"""Opening a merge: two finished models teach one plain network the tasks of both, on images without labels."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch

from taskgraft import data, distributed, pytree
from taskgraft.bundle import Bundle, open_parent
from taskgraft.data.dataset import Dataset, open_images, split_by_content
from taskgraft.data.task_images import TaskData, concat_images, describe_dataset, match_task
from taskgraft.data.transforms import CHANNELS, Preprocessing
from taskgraft.data.unlabeled import load_unlabeled
from taskgraft.errors import DataError, InputError
from taskgraft.metrics import agreement
from taskgraft.models import weight_merging
from taskgraft.models.classifier import Classifier
from taskgraft.models.ensemble import Conversion, join
from taskgraft.models.inference import predict, sample_evenly
from taskgraft.pipeline import measuring
from taskgraft.pipeline.compression import answer, open_student, require_teaching, start_student
from taskgraft.pipeline.opening import Opened, with_bits
from taskgraft.pipeline.request import MergeRequest, validate_request
from taskgraft.pipeline.usefulness import describe_usefulness
from taskgraft.results.files import fingerprint
from taskgraft.types import Callbacks, Images, Params, Task

HELD_OUT, MAX_HELD_OUT = 0.1, 1000  # fraction and number of the images on which agreement is measured
COMPARED = 200  # images on which two models that share a task are compared
MAX_REPEATS = 8  # times that an image of a smaller folder stands in an epoch


def open_merge(request: MergeRequest, cache: Path | None, callbacks: Callbacks) -> Opened:
    """Open both models and the images, and build the student.

    Args:
        request: A merge.
        cache: Folder of decoded pixels; None = in memory only.
        callbacks: `info` is called with what was inferred.

    Raises:
        TaskgraftError: A value, a model or the images cannot be used.
    """
    models = [
        open_parent(
            request.parent, arch=request.arch, labels=request.labels, preprocessing=request.preprocessing, cache=cache
        ),
        open_parent(request.other, cache=cache),
    ]
    for number, model in enumerate(models, 1):
        for line in model.notes:
            callbacks.info(f"model {number}: {line}")
        if model.classifier.softmax != "per-task":
            raise InputError(f"{model.source} has one softmax for all its tasks; only models with one per task merge")
        model.classifier.to(distributed.device()).requires_grad_(False)
    first, second = models
    if first.preprocessing.channels != second.preprocessing.channels:
        described = [f"{model.source} takes {CHANNELS[model.preprocessing.channels]} images" for model in models]
        raise InputError(f"{' and '.join(described)}; models merge that take images of one kind")
    shared = _list_shared_tasks(first, second)
    teacher = _join_models(first, second)
    tasks = teacher.classifier.tasks
    request, plan = validate_request(replace(request, task=tasks[-1].name))
    require_teaching(request, plan)
    bits, other_bits = (model.preprocessing.bits for model in models)
    prepared = first.preprocessing._replace(bits=bits or other_bits)
    images = distributed.main_process_first(lambda: _load_images(request, tasks, prepared, cache, callbacks))
    assert images.new.train is not None
    first, teacher = with_bits(first, images.new.bits), with_bits(teacher, images.new.bits)
    if bits and other_bits and bits != other_bits:
        callbacks.info(f"16-bit files are read as {bits} bits, but {second.source} was trained with {other_bits}")
    if shared:
        callbacks.info(_compare_shared(shared, first, second, images.new.train))
    if with_bits(second, images.new.bits).preprocessing != first.preprocessing:
        callbacks.info(
            f"images are prepared as for {first.source} ('{first.preprocessing.to_text()}'); {second.source} sees them "
            f"resized and normalized for it, not cropped ('{second.preprocessing.to_text()}')"
        )
    student, missing = open_student(request, first, tasks, request.student, images.new.train, callbacks)
    student = replace(student, cards=teacher.cards, source=teacher.source)

    def prepare(opened: Opened) -> Opened:
        train = opened.images.new.train
        assert train is not None
        notes = describe_usefulness(teacher.classifier, train, "the images")
        for note in notes:
            callbacks.info(note)
        baselines = _measure_baselines(opened, models, cache)
        start_student(student.classifier, request.student, missing, [train], teacher.classifier)
        return replace(opened, baselines=baselines, notes=tuple(notes))

    return Opened(
        request, plan, teacher, tasks, student.classifier, images,
        teacher=answer(teacher.classifier), student=student, prepare=prepare,
    )  # fmt: skip


def _list_shared_tasks(first: Bundle, second: Bundle) -> list[Task]:
    """The tasks that both models have; the first will answer them.

    Raises:
        InputError: Two tasks of one name have different classes.
    """
    others = {task.name: task for task in second.classifier.tasks}
    shared = [task for task in first.classifier.tasks if task.name in others]
    for task in shared:
        if set(task.classes) != set(others[task.name].classes):
            raise InputError(
                f"both models have a task {task.name!r}, with different classes; extend one of them with the other's "
                "images under another --task name"
            )
    if len(shared) == len(others):
        raise InputError(
            f"{second.source} has no task that {first.source} lacks ({', '.join(others)}); there is nothing to merge"
        )
    return shared


def _compare_shared(shared: Sequence[Task], first: Bundle, second: Bundle, images: Images) -> str:
    """Say how far two models agree on the tasks that both have."""
    sample = sample_evenly(images, COMPARED)
    one, other = (predict(model.classifier, sample) for model in (first, second))
    rates = []
    for task in shared:
        order = [other.classes[task.name].index(name) for name in task.classes]
        same = agreement(one, other._replace(logits={task.name: other.logits[task.name][:, order]}), task.name)
        rates.append(f"{task.name} ({same.mean():.1%} equal on {len(same)} images)")
    return f"both models answer {', '.join(rates)}; the answers of {first.source} are taught"


def _join_models(first: Bundle, second: Bundle) -> Bundle:
    """Both models as one, which answers all tasks on images that are prepared for the first."""
    here, there = first.preprocessing, second.preprocessing
    conversions = [
        Conversion(preprocessing.size, (here.mean, here.std), (preprocessing.mean, preprocessing.std))
        for preprocessing in (here, there)
    ]
    device = distributed.device()
    classifiers = [model.classifier for model in (first, second)]
    blank = torch.zeros(1, here.channels, here.size, here.size, device=device)
    classifier = join(classifiers, [conversion.to(device) for conversion in conversions], blank)
    return replace(
        first,
        classifier=classifier.requires_grad_(False),
        digest=fingerprint([first.digest, second.digest]),
        source=f"{first.source} + {second.source}",
        arch=first.arch if first.arch == second.arch else f"{first.arch} + {second.arch}",
        cards={**second.cards, **first.cards},
        memory={},
        folder=None,
    )


def _load_images(
    request: MergeRequest, tasks: Sequence[Task], preprocessing: Preprocessing, cache: Path | None, callbacks: Callbacks
) -> TaskData:
    """Load the images without labels, some of which are held out, and the labeled ones that measure accuracy."""
    sets = load_unlabeled(request.unlabeled, preprocessing, cache, callbacks, flag="--images")
    count = len(sets.digests)
    if len(set(sets.digests)) < 2:
        raise DataError(f"--images {request.data}: one image, but some are held out to measure agreement; add images")
    fraction = min(HELD_OUT, MAX_HELD_OUT / count)
    splits = split_by_content(sets.digests, [""] * count, fraction, request.config.seed)
    rows = {name: [row for row, split in enumerate(splits) if split == name] for name in ("train", "val")}
    parts = list(sets.described.values())
    repeated = _balance(rows["train"], [part["images"]["train"] for part in parts])
    if len(repeated) > len(rows["train"]):
        callbacks.info("images of smaller folders are shown more often, so that all folders count the same")
    train, val = (sets.images.select(torch.tensor(chosen)) for chosen in (repeated, rows["val"]))
    unlabeled = {tasks[-1].name: torch.full((len(train.pixels),), -1)}
    described = {
        "source": ", ".join(part["source"] for part in parts),
        "fingerprint": fingerprint([part["fingerprint"] for part in parts]),
        "images": {"train": len(rows["train"]), "val": len(val.pixels)},
        "counts": {},
        "excluded": [item for part in parts for item in part["excluded"]],
        "excluded_count": sum(part["excluded_count"] for part in parts),
        "notes": [],
    }
    dataset = Dataset(
        (tasks[-1],), train._replace(labels=unlabeled), val, None, (), "images without labels",
        described["fingerprint"], count, (), sets.bits,
    )  # fmt: skip
    preprocessing = preprocessing._replace(bits=sets.bits)
    labeled, descriptions = [], {"new": described}
    for path in request.old_val:
        task = match_task(path, tasks)
        progress = partial(callbacks.progress, f"reading {path.name}")
        opened = open_images(
            path, task.name, preprocessing, seed=request.config.seed, classes=task.classes, cache_folder=cache,
            as_split="val", progress=progress,
        )  # fmt: skip
        assert opened.val is not None
        labeled.append(opened.val)
        descriptions[f"val: {task.name}"] = describe_dataset(path, opened)
    return TaskData(dataset, None, concat_images(labeled), descriptions)


def _balance(rows: Sequence[int], sizes: Sequence[int]) -> list[int]:
    """Repeat the rows of smaller folders until all are equally large, or MAX_REPEATS times.

    A task of which only a small folder shows images is otherwise drowned: in a batch of 32 it had two of them.

    Args:
        rows: Images to train on, as positions in the set of all.
        sizes: How many images of that set each folder has, in order.
    """
    folders: list[list[int]] = [[] for _ in sizes]
    ends = np.cumsum(sizes)
    for row in rows:
        folders[int(np.searchsorted(ends, row, side="right"))].append(row)
    largest = max(map(len, folders))
    return [row for own in folders if own for row in islice(cycle(own), min(largest, MAX_REPEATS * len(own)))]


def _measure_baselines(opened: Opened, models: Sequence[Bundle], cache: Path | None) -> dict[str, dict[str, float]]:
    """Measure what merging the weights alone reaches: no image is used. Empty where the weights do not correspond.

    Returns:
        For each baseline the accuracy of each task that has labeled images, and the agreement of the others.
    """
    states = [pytree.state(model.classifier.backbone) for model in models]
    if len(models[0].classifier.extras) or len(models[1].classifier.extras) or not _correspond(states):
        return {}
    merged = {"weight averaging": weight_merging.average(states)}
    assert isinstance(opened.request, MergeRequest)
    if opened.request.ancestor:
        ancestor = open_parent(opened.request.ancestor, unnamed=True, cache=cache)
        start = pytree.state(ancestor.classifier.backbone.to(distributed.device()))
        if not _correspond([start, *states]):
            raise InputError(f"--ancestor {ancestor.source} has other layers than the models; give their parent")
        merged["task arithmetic"] = weight_merging.add_task_vectors(start, states)
        merged["TIES"] = weight_merging.ties(start, states)
    return {name: _measure_merged(opened, models, weights) for name, weights in merged.items()}


def _measure_merged(opened: Opened, models: Sequence[Bundle], weights: Params) -> dict[str, float]:
    """Measure a backbone of merged weights with the heads of both models."""
    assert opened.parent_predictions is not None
    backbone = copy.deepcopy(models[0].classifier.backbone)
    backbone.load_state_dict(weights)
    identities = [torch.nn.Identity(), torch.nn.Identity()]
    members = [
        Classifier(backbone, model.classifier.linears(), model.classifier.tasks, head_specs=model.classifier.head_specs)
        for model in models
    ]
    images = opened.images
    assert images.new.val is not None
    blank = data.normalize(images.new.val, 0, 1, distributed.device())
    sets = measuring.predict_validation(join(members, identities, blank), images)
    agreements = measuring.compute_agreements(opened.parent_predictions["new"], sets["new"])
    return {**agreements, **measuring.compute_accuracies(sets)}


def _correspond(states: Sequence[Mapping[str, torch.Tensor]]) -> bool:
    """Whether models have the same layers."""
    shapes = [{name: value.shape for name, value in state.items()} for state in states]
    return all(shape == shapes[0] for shape in shapes)
