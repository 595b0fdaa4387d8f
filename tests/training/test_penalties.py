"""The quadratic penalty at work: its gradient, its proximal step, and its extremes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from taskgraft import TrainingConfig, losses
from taskgraft.training.penalties import add_gradients, choose_form, step_towards
from taskgraft.types import Params, Quadratic

SHAPES = {"a": (3, 4), "b": (5,), "free": (2,)}


def noise(seed: int, names: tuple[str, ...] = ("a", "b"), dtype: torch.dtype = torch.float32) -> Params:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(SHAPES[name], generator=generator, dtype=dtype) for name in names}


def params(dtype: torch.dtype = torch.float32) -> Params:
    return {name: value.requires_grad_() for name, value in noise(0, tuple(SHAPES), dtype).items()}


def quadratic(
    seed: int, strength: float, implicit: bool, names: tuple[str, ...] = ("a", "b"), dtype: torch.dtype = torch.float32
) -> Quadratic:
    importance = {name: value.square() for name, value in noise(seed + 1, names, dtype).items()}
    return Quadratic(noise(seed, names, dtype), importance, strength, implicit)


def importance_of(item: Quadratic, name: str) -> Tensor:
    assert item.importance is not None
    return item.importance[name]


def values(some: Params) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in some.items()}


def equal(left: Params, right: Params) -> bool:
    return all(torch.equal(left[name], right[name]) for name in left)


def test_explicit_gradient_matches_formula() -> None:
    theta, item = params(torch.float64), quadratic(1, 2.5, False, dtype=torch.float64)
    start = {name: torch.full_like(value, 0.5) for name, value in theta.items()}
    for name in ("a", "free"):  # "b" has no gradient yet
        theta[name].grad = start[name].clone()
    add_gradients(theta, [item])
    total = sum(
        (importance_of(item, name) * (theta[name] - item.anchor[name]) ** 2).sum() * item.strength / 2
        for name in item.anchor
    )
    assert isinstance(total, Tensor)
    assert losses.quadratic(theta, item).item() == pytest.approx(float(total.detach()))
    by_hand = torch.autograd.grad(total, [theta["a"], theta["b"]])
    assert theta["a"].grad is not None
    assert theta["b"].grad is not None
    torch.testing.assert_close(theta["a"].grad, by_hand[0] + 0.5)
    torch.testing.assert_close(theta["b"].grad, by_hand[1])
    assert theta["free"].grad is not None
    assert torch.equal(theta["free"].grad, start["free"])


def test_implicit_step_is_closed_form_minimizer() -> None:
    theta, item, lr = params(torch.float64), quadratic(1, 2.5, True, dtype=torch.float64), 0.3
    before = values(theta)
    step_towards(theta, [item], lr)
    for name, anchor in item.anchor.items():
        pull = lr * item.strength * importance_of(item, name)
        torch.testing.assert_close(theta[name].detach(), (before[name] + pull * anchor) / (1 + pull))
        slope = (theta[name].detach() - before[name]) / lr
        slope += item.strength * importance_of(item, name) * (theta[name].detach() - anchor)
        assert float(slope.abs().max()) < 1e-12  # of |t - theta|^2 / (2 rate) + the quadratic
    assert torch.equal(theta["free"], before["free"])


def test_each_function_skips_the_other_form() -> None:
    theta, before = params(), values(params())
    step_towards(theta, [quadratic(1, 2.0, False)], 0.1)
    assert equal(values(theta), before)
    add_gradients(theta, [quadratic(1, 2.0, True)])
    assert all(value.grad is None for value in theta.values())


@pytest.mark.parametrize("implicit", [True, False])
def test_order_of_penalties(implicit: bool) -> None:
    pair = [quadratic(1, 2.0, implicit), quadratic(5, 0.7, implicit, ("b",))]
    result = []
    for items in (pair, pair[::-1]):
        theta = params()
        add_gradients(theta, items)
        step_towards(theta, items, 0.2)
        result.append({name: value.detach() if implicit else value.grad for name, value in theta.items()})
    for name in ("a", "b"):
        torch.testing.assert_close(result[0][name], result[1][name], rtol=1e-6, atol=1e-7)


def test_two_implicit_penalties_add_up() -> None:
    one, two, lr = quadratic(1, 2.0, True), quadratic(5, 0.7, True, ("b",)), 0.2
    theta, alone = params(), params()
    step_towards(theta, [one, two], lr)
    step_towards(alone, [one], lr)
    torch.testing.assert_close(theta["a"], alone["a"], rtol=1e-6, atol=1e-7)
    first, second = (lr * item.strength * importance_of(item, "b") for item in (one, two))
    start = noise(0, tuple(SHAPES))["b"]
    preprocessing = (start + first * one.anchor["b"] + second * two.anchor["b"]) / (1 + first + second)
    torch.testing.assert_close(theta["b"].detach(), preprocessing)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("implicit", [True, False])
def test_strength_zero_changes_nothing(implicit: bool, count: int) -> None:
    theta = params()
    for value in theta.values():
        value.grad = torch.randn_like(value)
    before, gradients = (
        values(theta),
        {name: value.grad.clone() for name, value in theta.items() if value.grad is not None},
    )
    items = [quadratic(seed, 0.0, implicit) for seed in range(1, 1 + count)]
    add_gradients(theta, items)
    step_towards(theta, items, 0.1)
    assert equal(values(theta), before)
    assert equal({name: value.grad for name, value in theta.items() if value.grad is not None}, gradients)


@pytest.mark.parametrize("count", [1, 2])
def test_unmoved_weights_stay_bit_identical(count: int) -> None:
    theta = params()
    anchor = {name: value for name, value in values(theta).items() if name != "free"}
    items = [quadratic(seed, 37.0, True)._replace(anchor=anchor) for seed in range(1, 1 + count)]
    step_towards(theta, items, 0.013)
    assert equal({name: value for name, value in values(theta).items() if name != "free"}, anchor)


@pytest.mark.parametrize("strength", [1e6, 1e12, 1e30])
@pytest.mark.parametrize("count", [1, 2])
def test_implicit_step_is_stable(strength: float, count: int) -> None:
    theta = params()
    items = [quadratic(1, strength, True) for _ in range(count)]
    for _ in range(5):
        step_towards(theta, items, 0.1)
    for name, anchor in items[0].anchor.items():
        torch.testing.assert_close(theta[name].detach(), anchor, rtol=1e-4, atol=1e-4)


def test_explicit_oscillates_implicit_does_not() -> None:
    def run(implicit: bool, strength: float) -> float:
        theta = {"b": torch.ones(5, requires_grad=True)}
        item = Quadratic({"b": torch.zeros(5)}, {"b": torch.ones(5)}, strength, implicit)
        for _ in range(20):
            theta["b"].grad = torch.zeros(5)
            add_gradients(theta, [item])
            with torch.no_grad():
                theta["b"] -= 0.1 * theta["b"].grad
            step_towards(theta, [item], 0.1)
        return float(theta["b"].detach().abs().max())

    assert run(False, 19.0) < 1  # rate * strength * importance = 1.9
    assert run(False, 21.0) > 5  # = 2.1
    assert run(True, 21.0) < 1e-6


@pytest.mark.parametrize(
    ("softmax", "optimizer", "implicit"),
    [("per-task", "sgd", True), ("per-task", "adamw", True), ("joint", "sgd", True), ("joint", "adamw", False)],
)
def test_choose_form(softmax: Any, optimizer: Any, implicit: bool) -> None:
    config, open_, fixed = (
        TrainingConfig(softmax=softmax, optimizer=optimizer),
        Quadratic({}, None, 1.0),
        quadratic(1, 1.0, True),
    )
    result = choose_form({"open": open_, "fixed": fixed}, config)
    assert result == {"open": open_._replace(implicit=implicit), "fixed": fixed}
