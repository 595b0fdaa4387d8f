"""Knowledge distillation: keep answering as the parent did, on the very images that are learnt from."""

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
from taskgraft.models.features import compute_logits, compute_once
from taskgraft.types import Memory, Outputs, Params, Step, Terms, TrainingData

ROWS = 32  # images a pass, where all views are answered at once
JOINT = "all outputs"  # the one entry of the teacher's answers where one softmax runs over all tasks


@dataclass(frozen=True)
class Distill(Settings):
    """Answer the old tasks on the new images as the parent does (Hinton 2015; Li and Hoiem 2016, LwF).

    strength * sum over old tasks of T^2 mean_i KL(parent / T || child / T), the founding text's kappa = strength.
    `teacher="recorded"` keeps the parent's logits of each fixed view the first time it is used; "live" asks the
    parent at every step, so that views need not repeat. Needs no old image.
    """

    strength: Annotated[float, Range(1e-2, 1e2, log=True, at_least=0)] = 1.0
    temperature: Annotated[float, Range(1, 8, above=0)] = 2.0
    teacher: Literal["recorded", "live"] = "recorded"
    scale: losses.Scale = "T2"

    @property
    def traits(self) -> Traits:
        """See `Traits`."""
        return Traits(distills=True)

    def build(self) -> Method:
        """Uses `remember` (the parent, and room for its answers) and `response`."""

        def remember(classifier: Classifier, sources: TrainingData, past: Memory) -> Memory:
            memory: Memory = {"parent": pytree.state(classifier)}
            if self.teacher == "recorded":
                if not sources.views:
                    raise InputError(
                        "distill(teacher=recorded) needs fixed views: give --views 1 or more, or teacher=live"
                    )
                shape, shared = (len(sources.new.pixels), sources.views), sources.trial_cache is not None
                memory["known"] = torch.full(shape, shared, dtype=torch.bool)
                memory["answers"] = compute_once(sources, "answers", lambda: _room(classifier, sources, filled=shared))
            return memory

        def response(step: Step, memory: Memory) -> Terms:
            own = step.batch.rows >= 0  # images that a method mixed in have no recorded answer
            outputs = _grouped(step.outputs, step.softmax, step.old)
            if not bool(own.all()):
                outputs = {name: logits[own] for name, logits in outputs.items()}
            if self.teacher == "live":
                answers = _grouped(step.predict(memory["parent"], own), step.softmax, step.old)
            else:
                answers = _recorded(step, memory, own)
            terms = [
                losses.distillation(logits, answers[name].to(logits.device), self.temperature, self.scale)
                for name, logits in outputs.items()
            ]
            return {"distill": self.strength * torch.stack(terms).sum()}

        return Method(remember=remember, response=response)


def _recorded(step: Step, memory: Memory, own: Tensor) -> Outputs:
    """The parent's logits of the views `own` [B] bool; those not yet known are computed and kept."""
    index, view = step.batch.rows, step.batch.view
    missing = own & ~memory["known"][index, view]
    if bool(missing.any()):
        found = _grouped(step.predict(memory["parent"], missing), step.softmax, step.old)
        for name, logits in found.items():
            memory["answers"][name][index[missing], view[missing]] = logits.half().cpu()
        memory["known"][index[missing], view[missing]] = True
    index, view = index[own], view[own]
    return {name: kept[index, view].float() for name, kept in memory["answers"].items()}


def _room(classifier: Classifier, sources: TrainingData, filled: bool) -> Params:
    """Room for the parent's logits of every view [N, V, K]; `filled` with all of them, for the trials of a search."""
    count = len(sources.new.pixels)
    room = {name: torch.zeros(count, sources.views, k, dtype=torch.float16) for name, k in _widths(classifier).items()}
    if filled:
        for view in range(sources.views):
            for first in range(0, count, ROWS):
                index = np.arange(first, min(first + ROWS, count))
                images = data.build_views(sources, index, np.full(len(index), view))
                outputs = _grouped(compute_logits(classifier, images), classifier.softmax, old_class_counts(classifier))
                for name, logits in outputs.items():
                    room[name][first : first + ROWS, view] = logits.half().cpu()
    return room


def _grouped(outputs: Outputs, softmax: Softmax, old: Mapping[str, int]) -> Outputs:
    """The logits that share a softmax: the parent's classes of each old task, or all at once where one is joint.

    Joint is the founding text's set-up: its responses are softmaxed over the extended model's outputs.
    """
    if softmax == "joint":
        return {JOINT: torch.cat(list(outputs.values()), dim=1)}
    return {task: outputs[task][:, :width] for task, width in old.items()}


def _widths(classifier: Classifier) -> dict[str, int]:
    if classifier.softmax == "joint":
        return {JOINT: sum(len(task.classes) for task in classifier.tasks)}
    return old_class_counts(classifier)
