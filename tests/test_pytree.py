"""Arithmetic on nested dictionaries of tensors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from taskgraft import pytree


def test_flatten_round_trips() -> None:
    memory = {"a": {"b": torch.ones(2), "c": {"d.e": torch.zeros(1)}}, "f": torch.arange(3)}
    flat = dict(pytree.flatten(memory))
    assert list(flat) == ["a/b", "a/c/d.e", "f"]
    again = pytree.unflatten(flat)
    assert again.keys() == memory.keys()
    assert again["a"]["c"]["d.e"] is memory["a"]["c"]["d.e"]
    assert dict(pytree.flatten({})) == {}


@pytest.mark.parametrize("leaf", [1.0, "x", None, [torch.ones(1)]])
def test_flatten_refuses_other_leaves(leaf: object) -> None:
    with pytest.raises(TypeError, match=r"memory entry 'a/b' is a .*; only tensors"):
        list(pytree.flatten({"a": {"b": leaf}}))


def test_state_is_a_detached_copy() -> None:
    layer = nn.BatchNorm1d(3)
    copy = pytree.state(layer)
    assert set(copy) == {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
    assert not any(value.requires_grad for value in copy.values())
    layer.weight.data.zero_()
    assert copy["weight"].tolist() == [1, 1, 1]


def test_lerp() -> None:
    generator = torch.Generator().manual_seed(0)
    start = {"w": torch.randn(50, generator=generator), "n": torch.tensor(3)}
    end = {"w": torch.randn(50, generator=generator) * 1e3, "n": torch.tensor(7)}
    assert torch.equal(pytree.lerp(start, end, 0.0)["w"], start["w"])
    assert torch.equal(pytree.lerp(start, end, 1.0)["w"], end["w"])
    between = pytree.lerp(start, end, 0.25)
    torch.testing.assert_close(between["w"], 0.75 * start["w"] + 0.25 * end["w"])
    assert between["n"].item() == 7
    with pytest.raises(KeyError, match="names differ"):
        pytree.lerp(start, {"w": end["w"]}, 0.5)
