"""Knowledge distillation: match the parent's logits of the old tasks on the new images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from taskgraft import data, losses, pytree
from taskgraft.config import Range, Softmax, TrainingConfig
from taskgraft.errors import InputError
from taskgraft.methods.protocol import Method, Settings, Traits
from taskgraft.models.classifier import Classifier, old_class_counts
from taskgraft.models.inference import compute_logits, compute_once, image_reader, sample_evenly
from taskgraft.types import MIXED_IN, UNLABELED, Batch, Memory, Outputs, Params, Step, Terms, TrainingData

SCALE_IMAGES = 512  # whose logits say how large a teacher's are
BATCH_SIZE = 32  # images per forward pass where all views are recorded in advance
JOINT = "all outputs"  # the one entry of the teacher's logits where one softmax covers all tasks


@dataclass(frozen=True)
class Distill(Settings):
    """Match the parent's predictions for the old tasks on the new images (Hinton et al. 2015; Li and Hoiem 2016, LwF).

    strength * sum over old tasks of T^2 mean_i KL(parent / T || child / T), T the `temperature`. `teacher="recorded"`
    stores the parent's logits of each fixed view when it is first used; "live" runs the parent at every step, so that
    views need not repeat. `loss="logits"` matches the logits themselves: their mean squared error, as a fraction of the
    parent's own mean square on the new images, takes the place of T^2 KL (Ba and Caruana 2014), which learns more of a
    confident teacher than its favorite. `blend` is the fraction of steps whose images are blended, by mixup (Zhang et
    al. 2018) or CutMix (Yun et al. 2019): they have no label, but a live teacher knows what it sees in them. Needs no
    old images.
    """

    traits = Traits(distills=True)

    strength: Annotated[float, Range(1e-2, 1e2, log=True, at_least=0)] = 1.0
    temperature: Annotated[float, Range(1, 8, above=0)] = 2.0
    teacher: Literal["recorded", "live"] = "recorded"
    loss: Literal["kl", "logits"] = "kl"
    scale: losses.Scale = "T2"
    blend: Annotated[float, Range(0, 1, at_least=0, at_most=1, searched=False)] = 0.0

    def requires(self, config: TrainingConfig) -> str | None:
        """Require a live teacher for blended images, which nobody could have recorded."""
        if self.blend and self.teacher == "recorded":
            return "distill(blend) needs a teacher that sees the blended images: add teacher=live"
        return None

    def build(self) -> Method:
        """Use `remember` (the parent and its logits), `response` and, to blend images, `mix`."""

        def remember(classifier: Classifier, sources: TrainingData, past: Memory) -> Memory:
            memory: Memory = {}
            if self.loss == "logits":
                memory["scale"] = compute_once(sources, "logit scale", lambda: _logit_scales(classifier, sources))
            if sources.teacher:  # it answers in the parent's place
                return memory
            memory["parent"] = pytree.state(classifier)
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
            taught = step.batch.rows != MIXED_IN
            if step.teach:
                teacher = step.teach(taught)
                outputs = {task: step.outputs[task] for task in teacher}
            elif self.teacher == "live":
                teacher = _group_by_softmax(step.predict(memory["parent"], taught), step.softmax, step.old)
                outputs = _group_by_softmax(step.outputs, step.softmax, step.old)
            else:
                teacher = _recorded_logits(step, memory)
                outputs = _group_by_softmax(step.outputs, step.softmax, step.old)
            if not bool(taught.all()):
                outputs = {name: data.take(logits, taught) for name, logits in outputs.items()}
            scales = memory.get("scale", {})
            terms = [
                self._compare(logits, data.to_device(teacher[name], logits.device), scales.get(name))
                for name, logits in outputs.items()
            ]
            return {"distill": self.strength * torch.stack(terms).sum()}

        def mix(batch: Batch, memory: Memory, rng: np.random.Generator) -> Batch:
            return _blend(batch, rng) if rng.random() < self.blend else batch

        return Method(remember=remember, response=response, mix=mix if self.blend and self.strength else None)

    def _compare(self, logits: Tensor, teacher: Tensor, scale: Tensor | None) -> Tensor:
        if scale is not None:
            return losses.logit_matching(logits, teacher, scale)
        return losses.distillation(logits, teacher, self.temperature, self.scale)


def _logit_scales(classifier: Classifier, sources: TrainingData) -> Params:
    """Return the mean square of the teacher's logits on a sample of the new images, by task or softmax."""
    images = sample_evenly(sources.new, SCALE_IMAGES)
    read = image_reader(images, classifier)
    batches: list[Outputs] = []
    for start in range(0, len(images.pixels), BATCH_SIZE):
        batch = read(start, min(start + BATCH_SIZE, len(images.pixels)))
        if sources.teacher:
            with torch.no_grad():
                batches.append(sources.teacher(batch))
        else:
            outputs = compute_logits(classifier, batch)
            batches.append(_group_by_softmax(outputs, classifier.softmax, old_class_counts(classifier)))
    return {name: losses.logit_scale(torch.cat([batch[name] for batch in batches])).clone() for name in batches[0]}


def _blend(batch: Batch, rng: np.random.Generator) -> Batch:
    """Blend each image with another of the batch, by mixup or CutMix; images that a method mixed in stay."""
    own = torch.nonzero(batch.rows != MIXED_IN).flatten()
    images, others = (data.take(batch.images, rows) for rows in (own, own[torch.from_numpy(rng.permutation(len(own)))]))
    share, cut = rng.random(), rng.random() < 0.5 and images.dim() == 4
    images, _ = data.blend(images, others, share, cut, rng)
    blended = batch.images.index_copy(0, data.to_device(own, batch.images.device), images)
    rows = torch.where(batch.rows == MIXED_IN, batch.rows, UNLABELED)
    labels = {
        task: torch.where((rows == UNLABELED).to(target.device), -1, target) for task, target in batch.labels.items()
    }
    return batch._replace(images=blended, labels=labels, rows=rows, partners=None, share=1.0)


def _recorded_logits(step: Step, memory: Memory) -> Outputs:
    """Return the parent's logits of the batch but for what was mixed in; those not recorded yet are computed.

    Logits of the new images are stored, those of unlabeled ones are not: their views do not come back.
    """
    index, view = step.batch.rows, step.batch.view
    new, taught = index >= 0, index != MIXED_IN
    missing = new & ~memory["recorded"][index, view]
    if bool(missing.any()):
        outputs = _group_by_softmax(step.predict(memory["parent"], missing), step.softmax, step.old)
        for name, logits in outputs.items():
            memory["logits"][name][index[missing], view[missing]] = logits.half().cpu()
        memory["recorded"][index[missing], view[missing]] = True
    known = {name: recorded[index[new], view[new]].float() for name, recorded in memory["logits"].items()}
    unlabeled = index == UNLABELED
    if not bool(unlabeled.any()):
        return known
    answers = _group_by_softmax(step.predict(memory["parent"], unlabeled), step.softmax, step.old)
    logits = {name: torch.zeros(len(index), rows.shape[1]) for name, rows in known.items()}
    for name, rows in logits.items():
        rows[new], rows[unlabeled] = known[name], answers[name].float().cpu()
    return {name: rows[taught] for name, rows in logits.items()}


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
