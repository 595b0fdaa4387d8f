"""What one writes without taskgraft to begin training on a folder of images; ends after the first step.

python -m benchmarks.speed.first_step WEIGHTS PICTURES SIZE
"""

from __future__ import annotations

import sys

import timm
import torch
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import Compose, Normalize, Resize, ToTensor

WORKERS = 2


def pictures(folder: str, size: int) -> ImageFolder:
    """The usual transforms: decoded by Pillow, squashed to size, normalized."""
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return ImageFolder(folder, Compose([Resize((size, size)), ToTensor(), Normalize(mean, std)]))


def main() -> None:
    weights, folder, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
    found = pictures(f"{folder}/train", size)
    state = torch.load(weights, weights_only=True)
    net = timm.create_model("resnet18", num_classes=state["fc.bias"].numel())
    net.load_state_dict(state)
    net.reset_classifier(len(found.classes))
    optimizer = torch.optim.AdamW(net.parameters(), 0.001)
    images, labels = next(iter(DataLoader(found, 32, shuffle=True, num_workers=WORKERS)))
    torch.nn.functional.cross_entropy(net.train()(images), labels).backward()
    optimizer.step()


if __name__ == "__main__":
    main()
