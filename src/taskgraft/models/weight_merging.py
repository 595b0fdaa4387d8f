"""Merging models in weight space, without an image: the baselines that a merge is compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from taskgraft.types import Params

SCALE = 0.4  # of the sum of task vectors: what Yadav et al. 2023 recommend where nothing can be validated
DENSITY = 0.2  # of the values of a task vector that TIES keeps, as in the paper


def average(models: Sequence[Params]) -> Params:
    """Average the weights of models of one architecture (Utans 1996; model soups, Wortsman et al. 2022)."""
    return {name: _mean([model[name] for model in models]) for name in models[0]}


def add_task_vectors(ancestor: Params, models: Sequence[Params], scale: float = SCALE) -> Params:
    """Add to the common ancestor what each model learned: task arithmetic (Ilharco et al. 2023).

    Args:
        ancestor: Parameters and buffers of the model that all were trained from.
        models: Those of the models.
        scale: Factor of the sum of the differences. Statistics of BatchNorm are averaged.
    """
    return _merge(
        ancestor, models, lambda start, values: start + scale * torch.stack([v - start for v in values]).sum(0)
    )


def ties(ancestor: Params, models: Sequence[Params], density: float = DENSITY) -> Params:
    """Merge by trimming, electing signs and averaging what agrees with them: TIES (Yadav et al. 2023, algorithm 1).

    Args:
        ancestor: Parameters and buffers of the model that all were trained from.
        models: Those of the models.
        density: Fraction of a task vector's values that is kept, the largest. Statistics of BatchNorm are averaged.
    """
    thresholds = [_threshold(ancestor, model, density) for model in models]

    def merge(start: Tensor, values: list[Tensor]) -> Tensor:
        vectors = torch.stack([value - start for value in values])
        limits = torch.stack(thresholds).to(vectors).view(-1, *[1] * start.dim())
        vectors = torch.where(vectors.abs() >= limits, vectors, 0.0)
        chosen = (vectors.sign() == vectors.sum(0).sign()) & (vectors != 0)
        return start + (vectors * chosen).sum(0) / chosen.sum(0).clamp(min=1)

    return _merge(ancestor, models, merge)


def _merge(ancestor: Params, models: Sequence[Params], merge: Callable[[Tensor, list[Tensor]], Tensor]) -> Params:
    merged = {}
    for name, start in ancestor.items():
        values = [model[name] for model in models]
        merged[name] = merge(start, values) if _is_weight(name, start) else _mean(values)
    return merged


def _is_weight(name: str, value: Tensor) -> bool:
    """Whether a value was learned; BatchNorm's statistics and counters were not."""
    return value.is_floating_point() and not name.endswith(("running_mean", "running_var"))


def _mean(values: Sequence[Tensor]) -> Tensor:
    if not values[0].is_floating_point():
        return values[0].clone()
    return torch.stack(list(values)).mean(0)


def _threshold(ancestor: Params, model: Params, density: float) -> Tensor:
    """The absolute value that a fraction `density` of a task vector's values reach."""
    vector = torch.cat(
        [(model[name] - start).abs().flatten() for name, start in ancestor.items() if _is_weight(name, start)]
    )
    keep = max(1, round(density * len(vector)))
    return vector.kthvalue(len(vector) - keep + 1).values
