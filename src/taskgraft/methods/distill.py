"""Knowledge distillation: match the parent's logits of the old tasks on the new images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from taskgraft import data, losses, pytree
from taskgraft.config import Range, Softmax
from taskgraft.errors import InputError
from taskgraft.methods.protocol import Method, Settings, Traits
from taskgraft.models.classifier import Classifier, old_class_counts
from taskgraft.models.inference import compute_logits, compute_once
from taskgraft.types import Memory, Outputs, Params, Step, Terms, TrainingData

BATCH_SIZE = 32  # images per forward pass where all views are recorded in advance
JOINT = "all outputs"  # the one entry of the teacher's logits where one softmax covers all tasks


@dataclass(frozen=True)
class Distill(Settings):
    """Match the parent's predictions for the old tasks on the new images (Hinton et al. 2015; Li and Hoiem 2016, LwF).

    strength * sum over old tasks of T^2 mean_i KL(parent / T || child / T), T the `temperature`. `teacher="recorded"`
    stores the parent's logits of each fixed view when it is first used; "live" runs the parent at every step, so that
    views need not repeat. Needs no old images.
    """

    traits = Traits(distills=True)

    strength: Annotated[float, Range(1e-2, 1e2, log=True, at_least=0)] = 1.0
    temperature: Annotated[float, Range(1, 8, above=0)] = 2.0
    teacher: Literal["recorded", "live"] = "recorded"
    scale: losses.Scale = "T2"

    def build(self) -> Method:
        """Use `remember` (the parent and its logits) and `response`."""

        def remember(classifier: Classifier, sources: TrainingData, past: Memory) -> Memory:
            memory: Memory = {"parent": pytree.state(classifier)}
            if self.teacher == "recorded":
                if not sources.views:
                    raise InputError(
                        "distill(teacher=recorded) needs fixed views: give --views 1 or more, or teacher=live"
                    )
                shape, shared = (len(sources.new.pixels), sources.views), sources.trial_cache is not None
                memory["recorded"] = torch.full(shape, shared, dtype=torch.bool)
                memory["logits"] = compute_once(
                    sources, "logits", lambda: _allocate(classifier, sources, filled=shared)
                )
            return memory

        def response(step: Step, memory: Memory) -> Terms:
            new = step.batch.rows >= 0  # for images that a method mixed in, nothing is recorded
            outputs = _group_by_softmax(step.outputs, step.softmax, step.old)
            if not bool(new.all()):
                outputs = {name: logits[new] for name, logits in outputs.items()}
            if self.teacher == "live":
                teacher = _group_by_softmax(step.predict(memory["parent"], new), step.softmax, step.old)
            else:
                teacher = _recorded_logits(step, memory, new)
            terms = [
                losses.distillation(logits, teacher[name].to(logits.device), self.temperature, self.scale)
                for name, logits in outputs.items()
            ]
            return {"distill": self.strength * torch.stack(terms).sum()}

        return Method(remember=remember, response=response)


def _recorded_logits(step: Step, memory: Memory, new: Tensor) -> Outputs:
    """Return the parent's logits of the images `new` [B] bool; those not recorded yet are computed and stored."""
    index, view = step.batch.rows, step.batch.view
    missing = new & ~memory["recorded"][index, view]
    if bool(missing.any()):
        outputs = _group_by_softmax(step.predict(memory["parent"], missing), step.softmax, step.old)
        for name, logits in outputs.items():
            memory["logits"][name][index[missing], view[missing]] = logits.half().cpu()
        memory["recorded"][index[missing], view[missing]] = True
    index, view = index[new], view[new]
    return {name: recorded[index, view].float() for name, recorded in memory["logits"].items()}


def _allocate(classifier: Classifier, sources: TrainingData, filled: bool) -> Params:
    """Allocate the parent's logits of every view [N, V, K]; `filled`: compute them all, for the trials of a search."""
    count = len(sources.new.pixels)
    recorded = {
        name: torch.zeros(count, sources.views, k, dtype=torch.float16) for name, k in _class_counts(classifier).items()
    }
    if filled:
        for view in range(sources.views):
            for first in range(0, count, BATCH_SIZE):
                index = np.arange(first, min(first + BATCH_SIZE, count))
                images = data.build_views(sources, index, np.full(len(index), view))
                outputs = _group_by_softmax(
                    compute_logits(classifier, images), classifier.softmax, old_class_counts(classifier)
                )
                for name, logits in outputs.items():
                    recorded[name][first : first + BATCH_SIZE, view] = logits.half().cpu()
    return recorded


def _group_by_softmax(outputs: Outputs, softmax: Softmax, old: Mapping[str, int]) -> Outputs:
    """Group logits by softmax: the parent's classes of each old task, or all outputs where the softmax is joint."""
    if softmax == "joint":
        return {JOINT: torch.cat(list(outputs.values()), dim=1)}
    return {task: outputs[task][:, :width] for task, width in old.items()}


def _class_counts(classifier: Classifier) -> dict[str, int]:
    if classifier.softmax == "joint":
        return {JOINT: sum(len(task.classes) for task in classifier.tasks)}
    return old_class_counts(classifier)
