"""Merging in weight space, against the papers' formulas one value at a time."""

from __future__ import annotations

import pytest
import torch

from taskgraft.models import weight_merging

START = {"a": torch.zeros(5), "bn.running_var": torch.ones(1), "bn.num_batches_tracked": torch.tensor(3)}
ONE = {"a": torch.tensor([4.0, -1.0, 3.0, 0.1, 0.0]), "bn.running_var": torch.full((1,), 2.0)}
TWO = {"a": torch.tensor([2.0, 3.0, -5.0, 0.2, 0.0]), "bn.running_var": torch.full((1,), 4.0)}
MODELS = [{**START, **ONE}, {**START, **TWO}]


def test_the_average_is_the_mean_of_weights_and_statistics() -> None:
    merged = weight_merging.average(MODELS)
    assert merged["a"].tolist() == pytest.approx([3.0, 1.0, -1.0, 0.15, 0.0])
    assert merged["bn.running_var"].item() == 3.0
    assert merged["bn.num_batches_tracked"].item() == 3


def test_task_arithmetic_adds_what_each_model_learned() -> None:
    start = {**START, "a": torch.ones(5)}
    merged = weight_merging.add_task_vectors(start, MODELS, scale=0.5)
    expected = [1 + 0.5 * (x - 1 + y - 1) for x, y in zip(ONE["a"].tolist(), TWO["a"].tolist(), strict=True)]
    assert merged["a"].tolist() == pytest.approx(expected)
    assert merged["bn.running_var"].item() == 3.0, "a variance is averaged: a sum of differences might be negative"


def test_ties_trims_elects_signs_and_averages_what_agrees() -> None:
    """At density 0.4 the first model keeps 4 and 3, the second 3 and -5: the third value has two signs."""
    merged = weight_merging.ties(START, MODELS, density=0.4)
    assert merged["a"].tolist() == pytest.approx([4.0, 3.0, -5.0, 0.0, 0.0])
    everything = weight_merging.ties(START, MODELS, density=1.0)
    assert everything["a"].tolist() == pytest.approx([3.0, 3.0, -5.0, 0.15, 0.0])
