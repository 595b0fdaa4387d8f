"""Learning without forgetting in a training loop of your own.

A network with two heads knows the digits 0 to 4 and learns 5 to 9 without an image of the first. A copy of it, made
before, says what the old head should go on saying of the new images. Needs scikit-learn.

    python recipes/lwf_in_your_loop.py
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import taskgraft


class TwoHeads(nn.Module):
    """Vectors [B, 64] -> logits of two tasks by name."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 64), nn.ReLU())
        self.heads = nn.ModuleDict({"low": nn.Linear(64, 5), "high": nn.Linear(64, 5)})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Compute the logits."""
        return {name: head(self.body(x)) for name, head in self.heads.items()}


def main(strength: float = 5.0, steps: int = 150) -> dict[str, float]:
    """Accuracy on each task, after learning the one and then the other."""
    torch.manual_seed(0)
    x, y = (torch.from_numpy(values) for values in load_digits(return_X_y=True))
    data = {"low": (x[y < 5].float() / 16, y[y < 5]), "high": (x[y >= 5].float() / 16, y[y >= 5] - 5)}
    model, keep = TwoHeads(), None
    for task, (images, labels) in data.items():
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        for _ in range(steps):
            logits = model(images)
            loss = cross_entropy(logits[task], labels) + (keep(logits, images) if keep else 0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        keep = taskgraft.LwF(model, temperature=2, strength=strength, tasks=[task])
    return {
        task: float((model(images)[task].argmax(1) == labels).float().mean()) for task, (images, labels) in data.items()
    }


if __name__ == "__main__":
    print("without:", main(strength=0.0))
    print("LwF:    ", main())
