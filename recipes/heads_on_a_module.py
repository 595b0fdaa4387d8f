"""A new head on a network of your own, trained without forgetting, in memory.

`wrap` names the last layer of any module, `grow` adds a task, `learn` trains it on a Dataset, a DataLoader or a pair of
arrays. No folder, no bundle; the child is a module that answers all tasks.

    python recipes/heads_on_a_module.py
"""

from __future__ import annotations

import torchvision
from torch import nn
from torch.utils.data import Dataset

import taskgraft
from taskgraft import Classifier, Task, TrainingConfig


def main(
    net: nn.Module,
    head: str,
    known: Task,
    new: Task,
    images: Dataset[object],
    config: TrainingConfig = TrainingConfig(),
) -> Classifier:
    """Give a network a second task."""
    parent = taskgraft.wrap(net, head, [known])
    learned = taskgraft.learn(taskgraft.grow(parent, new), images, method="distill + ewc", config=config)
    for line in learned.history:
        print(line.step, {name: round(value, 3) for name, value in line.terms.items()})
    return learned.classifier


if __name__ == "__main__":
    names = tuple(torchvision.models.ResNet18_Weights.DEFAULT.meta["categories"])
    data = torchvision.datasets.FakeData(32, (3, 64, 64), 3, torchvision.transforms.ToTensor())
    net, new = torchvision.models.resnet18(), Task("color", ("red", "green", "blue"))
    child = main(net, "fc", Task("imagenet", names), new, data, TrainingConfig(steps=10, head_steps=10))
    print({task.name: len(task.classes) for task in child.tasks})
