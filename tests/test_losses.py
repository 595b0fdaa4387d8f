"""Each term of the objective against its formula, written out in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor

from taskgraft import losses
from taskgraft.config import Softmax
from taskgraft.types import Quadratic

TEMPERATURES = (0.5, 1.0, 2.0, 4.0, 8.0)


def noise(*shape: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def textbook(logits: Tensor, teacher: Tensor, temperature: float) -> float:
    """Mean over images of sum_k p_k log(p_k / q_k), times T^2."""
    p = torch.softmax(teacher.double() / temperature, 1)
    q = torch.softmax(logits.double() / temperature, 1)
    return float((p * (p / q).log()).sum(1).mean()) * temperature**2


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_distillation_matches_formula(temperature: float) -> None:
    logits, teacher = noise(6, 5), noise(6, 5, seed=1)
    expected = textbook(logits, teacher, temperature)
    assert float(losses.distillation(logits, teacher, temperature)) == pytest.approx(expected, rel=1e-5)
    plain = float(losses.distillation(logits, teacher, temperature, "none"))
    assert plain * temperature**2 == pytest.approx(expected, rel=1e-5)


def test_teacher_is_the_target() -> None:
    sure, unsure = torch.tensor([[4.0, 0.0, 0.0]]), torch.zeros(1, 3)
    assert float(losses.distillation(unsure, sure, 1.0)) == pytest.approx(textbook(unsure, sure, 1.0), rel=1e-5)
    assert abs(textbook(unsure, sure, 1.0) - textbook(sure, unsure, 1.0)) > 0.1


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_distillation_of_equal_logits_is_0(temperature: float) -> None:
    logits = noise(6, 5).requires_grad_()
    same = losses.distillation(logits, logits.detach().clone(), temperature)
    assert float(same.detach()) == pytest.approx(0, abs=1e-6)
    same.backward()
    assert logits.grad is not None
    assert float(logits.grad.abs().max()) < 1e-6
    shifted = losses.distillation(noise(6, 5) + 7, noise(6, 5), temperature)  # softmax does not see a shift
    assert float(shifted) == pytest.approx(0, abs=1e-5)
    assert float(losses.distillation(noise(6, 5), noise(6, 5, seed=1), temperature)) > 0.1


def test_t_squared_keeps_gradient_size() -> None:
    def size(temperature: float, scale: losses.Scale) -> float:
        logits = noise(64, 10, scale=1.0).requires_grad_()
        losses.distillation(logits, noise(64, 10, seed=1, scale=1.0), temperature, scale).backward()
        assert logits.grad is not None
        return float(logits.grad.norm())

    kept = [size(temperature, "T2") for temperature in range(1, 9)]
    assert max(kept) / min(kept) < 1.5
    assert size(8, "none") == pytest.approx(size(8, "T2") / 64, rel=1e-4)


@pytest.mark.parametrize("huge", [1e4, 1e30])
def test_huge_logits(huge: float) -> None:
    logits = torch.tensor([[huge, -huge, 0.0]], requires_grad=True)
    value = losses.distillation(logits, torch.tensor([[-huge, huge, 0.0]]), 2.0)
    value.backward()
    assert bool(torch.isfinite(value))
    assert logits.grad is not None
    assert bool(torch.isfinite(logits.grad).all())
    assert float(value.detach()) == pytest.approx(4 * huge, rel=1e-5)  # T^2 * (2 huge / T)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_temperature_must_be_positive(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature must be above 0"):
        losses.distillation(noise(1, 2), noise(1, 2), temperature)


def test_low_precision_logits() -> None:
    logits, teacher = noise(6, 5).bfloat16(), noise(6, 5, seed=1).half()
    expected = textbook(logits, teacher, 2.0)
    assert float(losses.distillation(logits, teacher, 2.0)) == pytest.approx(expected, rel=1e-5)


OUTPUTS = {"a": noise(4, 3), "b": noise(4, 2, seed=2)}
LABELS = {"a": torch.tensor([2, -1, 0, -1]), "b": torch.tensor([-1, 1, 0, 0])}


def by_hand(softmax: str) -> float:
    total = 0.0
    for task, start in (("a", 0), ("b", 3)):
        logits = OUTPUTS[task] if softmax == "per-task" else torch.cat([OUTPUTS["a"], OUTPUTS["b"]], 1)
        first = 0 if softmax == "per-task" else start
        rows = [(row, int(label)) for row, label in enumerate(LABELS[task]) if label >= 0]
        logs = torch.log_softmax(logits.double(), 1)
        total += -sum(float(logs[row, first + label]) for row, label in rows) / len(rows)
    return total


@pytest.mark.parametrize("softmax", ["per-task", "joint"])
def test_cross_entropy(softmax: losses.Softmax) -> None:
    assert float(losses.cross_entropy(OUTPUTS, LABELS, softmax)) == pytest.approx(by_hand(softmax), rel=1e-6)


def test_cross_entropy_averages_labeled_images() -> None:
    outputs = {"a": noise(2, 3), "b": noise(2, 2, seed=2), "c": noise(2, 4, seed=4)}
    one = torch.tensor([-1, 3])
    expected = -torch.log_softmax(outputs["c"][1], 0)[3]
    assert torch.isclose(losses.cross_entropy(outputs, {"c": one}, "per-task"), expected)
    expected = -torch.log_softmax(torch.cat([logits[1] for logits in outputs.values()]), 0)[3 + 2 + 3]
    assert torch.isclose(losses.cross_entropy(outputs, {"c": one}, "joint"), expected)


def test_joint_softmax_differs_from_per_task() -> None:
    assert abs(by_hand("per-task") - by_hand("joint")) > 0.1


def test_unlabeled_rows_have_no_gradient() -> None:
    def gradients(softmax: losses.Softmax) -> dict[str, Tensor | None]:
        outputs = {task: logits.clone().requires_grad_() for task, logits in OUTPUTS.items()}
        losses.cross_entropy(outputs, {"a": LABELS["a"]}, softmax).backward()
        return {task: logits.grad for task, logits in outputs.items()}

    own = gradients("per-task")
    assert own["b"] is None
    assert own["a"] is not None
    assert own["a"].abs().sum(1).gt(0).tolist() == [True, False, True, False]
    joint = gradients("joint")["b"]
    assert joint is not None
    assert joint.sum(1).gt(0).tolist() == [True, False, True, False]  # the other task's outputs are pushed down


def test_batch_without_labels() -> None:
    outputs = {"a": noise(2, 3).requires_grad_()}
    value = losses.cross_entropy(outputs, {"a": torch.tensor([-1, -1])}, "per-task")
    value.backward()
    assert float(value.detach()) == 0
    assert outputs["a"].grad is not None
    assert not outputs["a"].grad.any()
    with pytest.raises(ValueError, match="a batch without labels"):
        losses.cross_entropy(outputs, {}, "per-task")


def test_quadratic() -> None:
    params = {"w": torch.tensor([1.0, 2.0], requires_grad=True), "free": torch.tensor([9.0])}
    item = Quadratic({"w": torch.tensor([0.0, 5.0])}, {"w": torch.tensor([3.0, 0.5])}, 4.0, True)
    assert losses.quadratic(params, item).item() == 4 / 2 * (3 * 1 + 0.5 * 9)
    assert losses.quadratic(params, item._replace(strength=0.0)).item() == 0
    two = {"v": torch.tensor([2.0]), "w": params["w"]}
    both = Quadratic({"v": torch.tensor([0.0]), **item.anchor}, None, 4.0, True)
    value = losses.quadratic(two, both)
    assert value.item() == 4 / 2 * (4 + 1 + 9)  # without importance all weights count alike
    assert value.dtype == torch.float64  # the sum of many tensors
    value.backward()
    assert params["w"].grad is not None
    assert params["w"].grad.tolist() == [4.0 * 1, 4.0 * -3]  # strength * (theta - anchor), in any loop
    with pytest.raises(KeyError, match="w"):
        losses.quadratic({"free": params["free"]}, item)


def test_strength_is_twice_the_reference_lambda() -> None:
    theta, anchor, fisher = noise(50), noise(50, seed=1), noise(50, seed=2).square()
    value = losses.quadratic({"w": theta}, Quadratic({"w": anchor}, {"w": fisher}, 2 * 0.7, False))
    assert float(value) == pytest.approx(
        0.7 * float((fisher.double() * (theta - anchor).double() ** 2).sum()), rel=1e-5
    )


GROWN = {"a": noise(4, 5, seed=3), "b": OUTPUTS["b"]}


def test_restrict_to_added() -> None:
    labels = {"a": torch.tensor([3, -1, 4, 3]), "b": LABELS["b"]}
    outputs, shifted = losses.restrict_to_added(GROWN, labels, "a", 3)
    assert torch.equal(outputs["a"], GROWN["a"][:, 3:])
    assert outputs["b"] is GROWN["b"]
    assert shifted["a"].tolist() == [0, -1, 1, 0]
    assert shifted["b"] is labels["b"]
    assert labels["a"].tolist() == [3, -1, 4, 3]


@pytest.mark.parametrize(("own", "width"), [([3, 0, 4, -1], 3), ([2, -1, -1, -1], 3), ([0, 1, 2, 3], 0), (None, 3)])
def test_restrict_to_added_with_old_classes(own: list[int] | None, width: int) -> None:
    labels = {"b": LABELS["b"]} | ({} if own is None else {"a": torch.tensor(own)})
    outputs, same = losses.restrict_to_added(GROWN, labels, "a", width)
    assert outputs["a"] is GROWN["a"]
    assert same == labels
    assert same is not labels


def test_matched_logits_are_a_fraction_of_the_teachers() -> None:
    logits, teacher = noise(6, 5), noise(6, 5, seed=1)
    error = sum(((z - z.mean()) - (t - t.mean())).square().sum().item() for z, t in zip(logits, teacher, strict=True))
    size = sum((t - t.mean()).square().sum().item() for t in teacher)
    scale = losses.logit_scale(teacher)
    assert float(scale) == pytest.approx(size / 30, rel=1e-5)
    assert float(losses.logit_matching(logits, teacher, scale)) == pytest.approx(error / size, rel=1e-5)
    ten = losses.logit_scale(10 * teacher)
    assert float(losses.logit_matching(10 * logits, 10 * teacher, ten)) == pytest.approx(error / size, rel=1e-5)
    assert float(losses.logit_matching(teacher + 3, teacher, scale)) == pytest.approx(0, abs=1e-6)
    assert float(losses.logit_matching(torch.zeros(6, 5), teacher, scale)) == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("softmax", ["per-task", "joint"])
def test_smoothing_and_weights_match_torch(softmax: Softmax) -> None:
    outputs, target = {"a": noise(6, 3), "b": noise(6, 4, seed=1)}, torch.tensor([0, 3, 1, -1, 2, 2])
    weights = torch.tensor([0.5, 2.0, 1.0, 4.0])
    found = losses.cross_entropy(outputs, {"b": target}, softmax, smoothing=0.1, weights={"b": weights})
    logits, shift = (outputs["b"], 0) if softmax == "per-task" else (torch.cat([outputs["a"], outputs["b"]], 1), 3)
    weights = weights if softmax == "per-task" else torch.cat([torch.ones(3), weights])
    rows = target >= 0
    expected = torch.nn.functional.cross_entropy(
        logits[rows], target[rows] + shift, weights, label_smoothing=0.1, reduction="sum"
    )
    assert float(found) == pytest.approx(float(expected) / 5, rel=1e-6)


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    labels = torch.tensor([0] * 6 + [1] * 3 + [3, -1])
    found = losses.balanced_weights(labels, 4)
    expected = compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=labels[labels >= 0].numpy())
    assert found[[0, 1, 3]].tolist() == pytest.approx(expected.tolist())
    assert found[2] == 1, "a class without images has old ones elsewhere, which count as they are"
    assert float(found[labels[labels >= 0]].mean()) == pytest.approx(1)
