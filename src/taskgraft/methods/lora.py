"""LoRA: train low-rank updates of the backbone and merge them at the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import nn

from taskgraft import seeding
from taskgraft.config import Range
from taskgraft.errors import InputError, require
from taskgraft.methods.protocol import Method, Settings, Traits
from taskgraft.models.classifier import Classifier, freeze
from taskgraft.types import Memory, TrainingData


@dataclass(frozen=True)
class Lora(Settings):
    """Train a low-rank update of each linear and convolutional layer of the backbone (Hu et al. 2022); needs peft.

    W + (alpha / rank) B A with A, B of `rank`, merged into W at the end, so that the child costs what the parent does.
    It restricts how weights change, not what is forgotten: combine it with distill. Grouped convolutions are skipped.
    """

    traits = Traits(replaces_weights=True)

    rank: Annotated[int, Range(2, 64, log=True, at_least=1)] = 8
    alpha: Annotated[float, Range(1, 64, log=True, above=0)] = 16.0

    def build(self) -> Method:
        """Use `adapt` (insert adapters, freeze the rest) and `finish` (merge the adapters)."""

        def adapt(classifier: Classifier, sources: TrainingData) -> Classifier:
            require("lora", "peft", what="lora")
            from peft import LoraConfig, inject_adapter_in_model

            targets = [name for name, module in classifier.backbone.named_modules() if _has_adapter(module)]
            if not targets:
                raise InputError(
                    f"lora found no linear or ungrouped convolutional layer in {type(classifier.backbone).__name__}; "
                    "use taps"
                )
            freeze(classifier)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seeding.derive(sources.seed, "lora"))
                config = LoraConfig(r=self.rank, lora_alpha=self.alpha, target_modules=targets)  # pyright: ignore
                classifier.backbone = inject_adapter_in_model(config, classifier.backbone)
            return classifier

        def finish(classifier: Classifier, memory: Memory, sources: TrainingData) -> tuple[Classifier, Memory]:
            from peft.tuners.tuners_utils import BaseTunerLayer

            for name, module in list(classifier.backbone.named_modules()):
                if isinstance(module, BaseTunerLayer):
                    module.merge()
                    classifier.backbone.set_submodule(name, module.get_base_layer())
            del classifier.backbone.peft_config  # the next extension starts from a plain network
            return classifier.requires_grad_(True), {}

        return Method(adapt=adapt, finish=finish)


def _has_adapter(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
