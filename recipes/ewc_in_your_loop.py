"""EWC in a training loop of your own.

A network of plain torch learns scikit-learn's digits 0 to 4, then the same digits with their pixels permuted. One line
measures what the old digits need, exactly, and one term in the loss holds it. Needs scikit-learn.

    python recipes/ewc_in_your_loop.py
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import taskgraft


def train(model: nn.Module, x: Tensor, y: Tensor, penalty: Callable[[], Tensor], steps: int) -> None:
    """Train on all examples at once; `penalty` is added to the loss."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(steps):
        loss = cross_entropy(model(x), y) + penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def main(strength: float = 300.0, steps: int = 100) -> dict[str, float]:
    """Accuracy on the old and on the permuted digits, after learning the one and then the other."""
    torch.manual_seed(0)
    x, y = (torch.from_numpy(values) for values in load_digits(n_class=5, return_X_y=True))
    x, permuted = x.float() / 16, x[:, torch.randperm(64)].float() / 16
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5))
    train(model, x, y, lambda: torch.zeros(()), steps)
    train(model, permuted, y, taskgraft.EWC(model, (x, y), strength=strength), steps)
    return {name: float((model(data).argmax(1) == y).float().mean()) for name, data in (("old", x), ("new", permuted))}


if __name__ == "__main__":
    print("without:", main(strength=0.0))
    print("EWC:    ", main())
