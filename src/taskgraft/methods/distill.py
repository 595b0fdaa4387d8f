"""Knowledge distillation: keep answering as the parent did, on the very pictures that are learnt from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from taskgraft import losses, tree
from taskgraft.classifier import Classifier, old_widths
from taskgraft.method import Method
from taskgraft.problem import Problem
from taskgraft.settings import Range
from taskgraft.types import Memory, Outputs, Sources, Step, Terms

JOINT = "all outputs"  # the one entry of the teacher's answers where one softmax runs over all tasks


@dataclass(frozen=True)
class Distill:
    """Answer the old tasks on the new images as the parent does (Hinton 2015; Li and Hoiem 2016, LwF).

    strength * sum over old tasks of T^2 mean_i KL(parent / T || child / T), the founding text's kappa = strength.
    `teacher="recorded"` keeps the parent's logits of each fixed view the first time it is used; "live" asks the
    parent at every step, so that views need not repeat. Needs no old image.
    """

    strength: Annotated[float, Range(1e-2, 1e2, log=True, at_least=0)] = 1.0
    temperature: Annotated[float, Range(1, 8, above=0)] = 2.0
    teacher: Literal["recorded", "live"] = "recorded"
    scale: losses.Scale = "T2"

    def build(self) -> Method:
        """Uses `remember` (the parent, and room for its answers) and `response`."""

        def remember(classifier: Classifier, sources: Sources, past: Memory) -> Memory:
            memory: Memory = {"parent": tree.state(classifier)}
            if self.teacher == "recorded":
                if not sources.views:
                    raise Problem(
                        "distill(teacher=recorded) needs fixed views: give --views 1 or more, or teacher=live"
                    )
                shape = (len(sources.new.pixels), sources.views)
                memory["known"] = torch.zeros(shape, dtype=torch.bool)
                memory["answers"] = {
                    name: torch.zeros(*shape, width, dtype=torch.float16) for name, width in _widths(classifier).items()
                }
            return memory

        def response(step: Step, memory: Memory) -> Terms:
            own = step.batch.place >= 0  # images that a method mixed in have no recorded answer
            outputs, images = _grouped(step.outputs, step), step.batch.images
            if not bool(own.all()):
                outputs = {name: logits[own] for name, logits in outputs.items()}
                images = images[own]
            if self.teacher == "live":
                answers = _grouped(step.answer(memory["parent"], images), step)
            else:
                answers = _recorded(step, memory, images, step.batch.place[own], step.batch.view[own])
            terms = [
                losses.distillation(logits, answers[name].to(logits.device), self.temperature, self.scale)
                for name, logits in outputs.items()
            ]
            return {"distill": self.strength * torch.stack(terms).sum()}

        return Method(remember=remember, response=response)


def _recorded(step: Step, memory: Memory, images: Tensor, index: Tensor, view: Tensor) -> Outputs:
    """The parent's logits of these views; those not yet known are computed and kept."""
    missing = ~memory["known"][index, view]
    if bool(missing.any()):
        found = _grouped(step.answer(memory["parent"], images[missing.to(images.device)]), step)
        for name, logits in found.items():
            memory["answers"][name][index[missing], view[missing]] = logits.half().cpu()
        memory["known"][index[missing], view[missing]] = True
    return {name: kept[index, view].float() for name, kept in memory["answers"].items()}


def _grouped(outputs: Outputs, step: Step) -> Outputs:
    """The logits that share a softmax: the parent's classes of each old task, or all at once where one is joint.

    Joint is the founding text's set-up: its responses are softmaxed over the extended model's outputs.
    """
    if step.softmax == "joint":
        return {JOINT: torch.cat(list(outputs.values()), dim=1)}
    return {task: outputs[task][:, :width] for task, width in step.old.items()}


def _widths(classifier: Classifier) -> dict[str, int]:
    if classifier.softmax == "joint":
        return {JOINT: sum(len(task.classes) for task in classifier.tasks)}
    return old_widths(classifier)
