"""A search with scikit-learn: an extension as an estimator.

`Extender` has `fit`, `predict`, `predict_proba` and `score`, so `cross_val_score`, pipelines and `GridSearchCV` take it
as they take any classifier. Here a network that knows the digits 0 to 4 learns 5 to 9. Needs scikit-learn.

    python recipes/grid_search.py
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from torch import nn

import taskgraft
from taskgraft import Task, TrainingConfig

CONFIG = TrainingConfig(steps=100, batch_size=64, lr=0.01, head_steps=20, augment="none", views=1)


def main(steps: int = 100) -> dict[str, object]:
    """Gives the best settings, their cross-validated accuracy, and the tasks of the model."""
    torch.manual_seed(0)
    x, y = load_digits(return_X_y=True)
    low, x = y < 5, x / 16
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5))
    parent = taskgraft.wrap(net, "2", [Task("low", tuple("01234"))])
    parent = taskgraft.learn(parent, (x[low], y[low]), method="finetune", config=CONFIG).classifier
    extender = taskgraft.Extender(parent, task="high", config=CONFIG, steps=steps)
    search = GridSearchCV(extender, {"method": ["frozen", "distill"], "lr": [0.001, 0.01]}, cv=3).fit(x[~low], y[~low])
    tasks = [task.name for task in search.best_estimator_.classifier_.tasks]
    return {"settings": search.best_params_, "accuracy": float(search.best_score_), "tasks": tasks}


if __name__ == "__main__":
    print(main())
