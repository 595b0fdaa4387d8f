"""Distillation from an earlier state of a network, for training loops of one's own."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from taskgraft import losses
from taskgraft.errors import InputError
from taskgraft.models.eval_mode import eval_mode
from taskgraft.regularizers.outputs import name_outputs


class LwF:
    """Learning without forgetting for a training loop of one's own (Li and Hoiem 2016).

    Make it before training on new data, and add `keep(logits, images)` to the loss, with the logits that the student
    gives to the same images. It is strength * sum over outputs of mean_i KL(teacher / T || student / T), without the
    factor T^2, as published; scale="T2" adds it (Hinton et al. 2015).

    Args:
        teacher: Any module that returns logits [B, K], or {name: logits}; usually the model itself. It is copied, so
            that training the model does not change it.
        strength: Factor of the loss.
        temperature: T, above 0.
        scale: "none" or "T2".
        tasks: The teacher's outputs to keep, where it has several; None = all.

    Raises:
        InputError: A setting is out of range.
    """

    def __init__(
        self,
        teacher: nn.Module,
        *,
        strength: float = 1.0,
        temperature: float = 2.0,
        scale: losses.Scale = "none",
        tasks: Collection[str] | None = None,
    ) -> None:
        if not temperature > 0 or not strength >= 0:
            raise InputError(
                f"temperature {temperature}, strength {strength}: give a temperature above 0, strength >= 0"
            )
        if scale not in ("none", "T2"):
            raise InputError(f"scale {scale!r} does not exist; give 'none' or 'T2'")
        self.teacher = copy.deepcopy(teacher).requires_grad_(False)
        self.strength, self.temperature = strength, temperature
        self.scale: losses.Scale = scale
        self.tasks = None if tasks is None else tuple(tasks)

    def __call__(self, logits: Tensor | Mapping[str, Tensor], images: Tensor) -> Tensor:
        """Compute the loss of a batch; a scalar, differentiable by `logits`.

        Args:
            logits: The student's logits of the old classes [B, K], or by name; columns beyond the teacher's are not
                compared, nor are outputs that the teacher does not have.
            images: The batch [B, ...] that they are for.

        Raises:
            InputError: The teacher's output is missing or wider than the student's.
        """
        device = next(self.teacher.parameters()).device
        if device != images.device:
            self.teacher.to(images.device)
        with eval_mode(self.teacher), torch.no_grad():
            answers = name_outputs(self.teacher(images))
        missing = [task for task in self.tasks or () if task not in answers]
        if missing:
            raise InputError(f"the teacher has no output {missing[0]!r}; it has {', '.join(answers)}")
        targets = answers if self.tasks is None else {task: answers[task] for task in self.tasks}
        student = name_outputs(logits)
        terms = []
        for name, target in targets.items():
            if name not in student or student[name].shape[1] < target.shape[1]:
                what = list(student[name].shape) if name in student else f"{', '.join(student)} only"
                raise InputError(
                    f"the teacher answers {name} {list(target.shape)}, the student {what}; give the student's logits "
                    "of the same classes"
                )
            own = student[name][:, : target.shape[1]]
            terms.append(losses.distillation(own, target, self.temperature, self.scale))
        return self.strength * torch.stack(terms).sum()

    def __repr__(self) -> str:
        """Name the settings."""
        teacher = type(self.teacher).__name__
        return f"LwF({teacher}, strength={self.strength:g}, temperature={self.temperature:g}, scale={self.scale!r})"
