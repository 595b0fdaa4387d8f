"""The exact Fisher information of a torchvision model.

Per image, not per batch, for every layer: which parts of a network its predictions depend on. Any module and any loader
will do; what comes out is a dictionary of tensors to keep, to plot, or to give to `taskgraft.EWC(importance=…)`.

    python recipes/fisher.py
"""

from __future__ import annotations

import torch
import torchvision
from torch.utils.data import DataLoader

import taskgraft


def main(model: torch.nn.Module, loader: DataLoader[object], path: str = "fisher.pt") -> dict[str, float]:
    """Measure and save the Fisher diagonal; gives its mean by parameter, largest first."""
    fisher = taskgraft.fisher_diagonal(model, loader, labels="sampled", images=512)
    torch.save(fisher, path)
    means = {name: float(values.mean()) for name, values in fisher.items()}
    return dict(sorted(means.items(), key=lambda pair: -pair[1]))


if __name__ == "__main__":
    images = torchvision.datasets.FakeData(16, transform=torchvision.transforms.ToTensor())
    for name, mean in main(torchvision.models.resnet18(), DataLoader(images, batch_size=8)).items():
        print(f"{mean:.2e}  {name}")
