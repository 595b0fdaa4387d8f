"""Gradient projection: the bases against NumPy's singular values, and what projected training leaves unchanged."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from taskgraft.methods import composition, gpm
from taskgraft.models.classifier import grow, inherited_parameters, wrap
from taskgraft.models.inference import predict
from taskgraft.training import loop
from taskgraft.types import TrainingData
from toys import NEW, OLD, RUN, make_images, parent, run_steps, start_run, weights


def gpm_basis(threshold: float, *tasks: np.ndarray) -> np.ndarray:
    """The basis after several tasks by the paper's equations 5 and 9, from singular values; tasks [d, n]."""
    basis = np.zeros((len(tasks[0]), 0))
    for inputs in tasks:
        left = inputs - basis @ basis.T @ inputs
        vectors, values, _ = np.linalg.svd(left, full_matrices=False)
        total, count = (inputs**2).sum(), 0
        while total - (left**2).sum() + (values[:count] ** 2).sum() < threshold * total:
            count += 1
        basis = np.hstack([basis, vectors[:, :count]])
    return basis


@pytest.mark.parametrize("threshold", [0.5, 0.9, 0.99])
def test_bases_equal_those_of_the_paper(threshold: float) -> None:
    rng = np.random.default_rng(0)
    tasks = [rng.normal(size=(12, 40)) * rng.uniform(0.1, 3, (12, 1)) for _ in range(3)]
    basis = torch.zeros(1, 12, 0, dtype=torch.float64)
    for inputs in tasks:
        rows = torch.from_numpy(inputs.T)[None]
        basis = torch.cat([basis, gpm._principal_directions(rows, basis, threshold)], 2)
    expected = gpm_basis(threshold, *tasks)
    torch.testing.assert_close(basis[0] @ basis[0].mT, torch.from_numpy(expected @ expected.T))


@pytest.mark.parametrize(("groups", "padding", "stride"), [(1, 1, 2), (6, "same", 1), (3, 0, 1), (2, (2, 1), 1)])
def test_patches_times_weights_are_the_convolution(groups: int, padding: int | str, stride: int) -> None:
    images, weight = torch.randn(2, 6, 7, 9), torch.randn(12, 6 // groups, 3, 3)
    patches = gpm._patches(images, weight, None, stride, padding, groups=groups)
    outputs = patches @ weight.reshape(groups, 12 // groups, -1).mT  # [G, B * positions, O / G]
    expected = F.conv2d(images, weight, None, stride, padding, groups=groups)
    by_position = expected.flatten(2).unflatten(1, (groups, -1)).permute(1, 0, 3, 2).flatten(1, 2)
    torch.testing.assert_close(outputs, by_position, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_old_task_keeps_its_logits_on_the_protected_images(optimizer: str) -> None:
    """A wide network has room beside 6 images: with all their directions protected, their old logits stay."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 64), nn.ReLU(), nn.Linear(64, 3))
    model, old = wrap(net, "3", [OLD]), make_images(6, OLD, 7, size=8)
    config = replace(RUN, steps=30, lr=0.01, optimizer=optimizer, head_steps=0, clip_grad=0.0)
    data = TrainingData(make_images(16, NEW, 5, size=8), old, 2, "none", 3)

    def drift(method: str) -> float:
        run = composition.build(method)
        state = loop.fit(loop.start(grow(model, NEW, 3), run, data, {}, config), run, data, config)
        return float(np.abs(predict(state.classifier, old).logits[OLD.name] - before).max())

    before = predict(model.eval(), old).logits[OLD.name]
    assert drift("finetune") > 0.1
    assert drift("gpm(threshold=1)") < 1e-3


def test_a_lower_threshold_leaves_more_room() -> None:
    start = weights(start_run("gpm(images=16)")[0])

    def moved(threshold: float) -> float:
        child = run_steps(f"gpm(images=16, threshold={threshold})").classifier
        return sum(float((v.detach() - start[name]).abs().sum()) for name, v in inherited_parameters(child).items())

    assert moved(0.8) > 1.5 * moved(0.999)


def test_the_next_extension_protects_every_task_without_their_images() -> None:
    config = replace(RUN, norm="frozen")
    state, method, data = start_run("gpm(images=16, threshold=0.9)", config)
    state = loop.fit(state, method, data, config)
    assert method.finish
    _, memory = method.finish(state.classifier, state.memory, data)
    before, after = state.memory["gpm"]["bases"], memory["gpm"]["bases"]
    assert after.keys() >= before.keys()
    for name, basis in before.items():
        assert torch.equal(after[name][:, :, : basis.shape[2]], basis), name
    assert any(after[name].shape[2] > basis.shape[2] for name, basis in before.items())


def test_inherited_parameters_without_inputs_stay() -> None:
    start, end = weights(start_run("gpm(images=16)")[0]), weights(run_steps("gpm(images=16)"))
    norms = [name for name, value in start.items() if name.endswith(".weight") and value.dim() == 1]
    assert norms
    assert all(torch.equal(start[name], end[name]) for name in norms)


def test_first_has_a_threshold_of_its_own() -> None:
    images = make_images(16, OLD, 7)
    model = grow(parent(), NEW, 0)
    names = [name for name, _ in model.named_parameters()]
    low = gpm.Gpm(threshold=0.99, first=0.5)._extend(model, images, {}, names)
    high = gpm.Gpm(threshold=0.99)._extend(model, images, {}, names)
    (first, *others) = low
    assert low[first].shape[2] < high[first].shape[2]
    assert all(torch.equal(low[name], high[name]) for name in others)
