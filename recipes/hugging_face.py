"""Extend an image classifier of Hugging Face, and open the child with its pipeline.

ViT, DeiT, Swin, ConvNeXt and ResNet, from the Hub, a folder or memory; a method with one backbone leaves a model that
`pipeline` opens. Its labels are those of all tasks. Needs `pip install transformers`.

    python recipes/hugging_face.py MODEL PICTURES OUT
"""

from __future__ import annotations

import sys

from transformers import AutoModelForImageClassification, Pipeline, pipeline

import taskgraft
from taskgraft import TrainingConfig


def main(name: str, pictures: str, out: str, task: str = "new", config: TrainingConfig = TrainingConfig()) -> Pipeline:
    """Extend the model by the classes of a folder of pictures."""
    model = AutoModelForImageClassification.from_pretrained(name)
    print(taskgraft.extend(model, pictures, out, task=task, method="distill + wise", config=config))
    return pipeline("image-classification", model=out)


if __name__ == "__main__":
    print(main(*sys.argv[1:4]).model)
