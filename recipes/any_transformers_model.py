"""Extend an image classifier of transformers that timm does not have, and write it as one again.

A folder with `config.json` and safetensors, as `save_pretrained` leaves it, goes in; the same with the new classes
behind the old ones comes out. transformers' models answer with an object and not with a tensor, so a small module
stands between. Needs `pip install transformers`. ViT, DeiT, Swin, ConvNeXt and ResNet need none of this: see
`recipes/hugging_face.py`.

    python recipes/any_transformers_model.py MODEL_FOLDER PICTURES OUT
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn
from transformers import AutoImageProcessor, AutoModelForImageClassification

import taskgraft
from taskgraft import Task, TrainingConfig, metrics
from taskgraft.data import Preprocessing, open_images
from taskgraft.models.classifier import merge_heads


class Logits(nn.Module):
    """A transformers model whose answer is its logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels [B, 3, H, W] -> logits [B, K]."""
        return self.model(pixel_values=pixels).logits


def main(folder: Path, pictures: Path, out: Path, config: TrainingConfig = TrainingConfig(lr=3e-4)) -> dict[str, float]:
    """Extend the model in a folder; gives the new task's accuracy and the old one's agreement with the parent."""
    processor = AutoImageProcessor.from_pretrained(folder)
    model = AutoModelForImageClassification.from_pretrained(folder)
    size = processor.size.get("height") or processor.size.get("shortest_edge")
    preprocessing = Preprocessing(
        size, "squash", 1.0, "bilinear", tuple(processor.image_mean), tuple(processor.image_std)
    )
    found = open_images(pictures, pictures.name, preprocessing, seed=config.seed)

    names = tuple(model.config.id2label[row] for row in range(model.config.num_labels))
    head = [name for name, module in Logits(model).named_modules() if isinstance(module, nn.Linear)][-1]
    parent = taskgraft.wrap(Logits(model), head, [Task("known", names)])
    both = taskgraft.grow(parent, found.tasks[0], config.seed)
    child = taskgraft.learn(both, found.train, method="distill", config=config).classifier

    before, after = taskgraft.predict(parent, found.val), taskgraft.predict(child, found.val)
    agreement = metrics.agreement(before, after, "known")
    weight, bias = merge_heads(child)
    layer = nn.Linear(weight.shape[1], len(weight))
    layer.weight.data, layer.bias.data = weight, bias
    child.backbone.set_submodule(head, layer)
    extended, labels = child.backbone.model, [*names, *found.tasks[0].classes]
    extended.config.id2label = dict(enumerate(labels))
    extended.config.label2id = {name: row for row, name in enumerate(labels)}
    extended.num_labels = len(labels)
    extended.save_pretrained(out)
    processor.save_pretrained(out)
    return {"new": metrics.accuracy(after, pictures.name), "agreement": float(agreement.mean())}


if __name__ == "__main__":
    print(main(*map(Path, sys.argv[1:4])))
