"""EWC, SI, MAS, L2SP and LwF in a plain training loop of any module: each against a few lines of torch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

import taskgraft
from taskgraft import EWC, L2SP, MAS, SI, InputError, LwF, fisher_diagonal
from taskgraft.regularizers import importance
from taskgraft.regularizers.weights import WeightPenalty

COUNT = 22


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


X, Y = noise(0, COUNT, 3, 6, 6), torch.arange(COUNT) % 3


class TwoHeads(nn.Module):
    """Dropout, BatchNorm, and a dictionary of two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)
        self.heads = nn.ModuleDict({"old": nn.Linear(4, 3), "new": nn.Linear(4, 2)})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.drop(torch.relu(self.norm(self.conv(x))).mean((2, 3)))
        return {name: head(x) for name, head in self.heads.items()}


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


def batches(size: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(X.split(size), Y.split(size), strict=True))


def close(result: dict[str, Tensor], expected: dict[str, Tensor], rtol: float = 1e-4) -> None:
    assert result.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(result[name], value, rtol=rtol, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def per_image(model: nn.Module, scalar: Callable[[Tensor, int], list[tuple[Tensor, Tensor]]], power: int) -> Any:
    """mean_i sum of weight * |gradient|^power over the (value, weight) pairs of image i."""
    model = copy.deepcopy(model).eval()
    names, params = zip(*model.named_parameters(), strict=True)
    sums = [torch.zeros_like(value) for value in params]
    for i in range(COUNT):
        for value, weight in scalar(model(X[i : i + 1])[0], i):
            for total, gradient in zip(sums, torch.autograd.grad(value, params, retain_graph=True), strict=True):
                total += weight * gradient.abs() ** power / COUNT
    return dict(zip(names, sums, strict=True))


def all_classes(logits: Tensor, i: int) -> list[tuple[Tensor, Tensor]]:
    return [(logits.log_softmax(0)[c], logits.softmax(0)[c].detach()) for c in range(3)]


def true_class(logits: Tensor, i: int) -> list[tuple[Tensor, Tensor]]:
    return [(logits.log_softmax(0)[Y[i]], torch.ones(()))]


def test_fisher_is_that_of_single_images(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network().train()
    state = copy.deepcopy(model.state_dict())
    close(fisher_diagonal(model, batches(5), labels="exact"), per_image(model, all_classes, 2))
    monkeypatch.setattr(importance, "BLOCK", 8)  # several blocks, joined of batches
    for loader in (batches(5), (X, Y), DataLoader(TensorDataset(X, Y), batch_size=9), TensorDataset(X, Y)):
        close(fisher_diagonal(model, loader, labels="empirical"), per_image(model, true_class, 2))
    assert model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_drawn_labels_depend_on_the_image_and_not_on_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    whole = fisher_diagonal(model, X)
    monkeypatch.setattr(importance, "BLOCK", 4)
    close(fisher_diagonal(model, batches(3)), whole)
    close(fisher_diagonal(model, batches(5), images=12), fisher_diagonal(model, (X[:12], Y[:12])))
    assert any(not torch.equal(value, whole[name]) for name, value in fisher_diagonal(model, X, seed=1).items())
    many = fisher_diagonal(model, X, draws=3000, parameters=["4.weight"])
    torch.testing.assert_close(
        many["4.weight"], fisher_diagonal(model, X, labels="exact")["4.weight"], rtol=0.2, atol=1e-3
    )


def test_mas_is_the_sensitivity_of_single_images() -> None:
    model = network()
    found = MAS(model, batches(6), strength=0.5).importance
    assert found is not None
    close(found, per_image(model, lambda logits, i: [(logits.square().sum(), torch.ones(()))], 1))


def test_outputs_that_do_not_count_leave_their_head_free() -> None:
    model = TwoHeads()
    penalty = EWC(model, X, strength=7.0, tasks=["old"], labels="exact")
    assert penalty.importance is not None
    assert not penalty.importance["heads.new.weight"].any()
    assert penalty.importance["heads.old.weight"].any()
    both = fisher_diagonal(model, X, labels="exact")
    new = fisher_diagonal(model, X, labels="exact", tasks=["new"])
    close({name: penalty.importance[name] + new[name] for name in new}, both)
    given = {"old": Y, "new": Y % 2}
    assert fisher_diagonal(model, [(X, given)], labels="empirical").keys() == both.keys()


def test_penalty_has_the_value_and_the_gradient_of_its_formula() -> None:
    model = network()
    penalty = EWC(model, batches(7), strength=30.0)
    assert float(penalty().detach()) == 0
    with torch.no_grad():
        for value in model.parameters():
            value += 0.1
    loss = penalty()
    loss.backward()
    assert penalty.importance is not None
    expected = sum(30 / 2 * (value * 0.1**2).sum() for value in penalty.importance.values())
    torch.testing.assert_close(loss.detach(), torch.as_tensor(expected), rtol=1e-4, atol=0)
    for name, value in model.named_parameters():
        torch.testing.assert_close(value.grad, 30 * 0.1 * penalty.importance[name], rtol=1e-4, atol=1e-7)
    assert loss.dtype == torch.float32
    assert repr(penalty) == "EWC(strength=30, 6 parameters, 315 values)"


def test_step_is_proximal_with_the_rate_of_each_group() -> None:
    model = network()
    penalty = L2SP(model, strength=3.0)
    start = copy.deepcopy(dict(model.named_parameters()))
    groups = [{"params": model[0].parameters()}, {"params": model[4].parameters(), "lr": 0.5}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    F.cross_entropy(model(X), Y).backward()
    optimizer.step()
    moved = copy.deepcopy(dict(model.named_parameters()))
    penalty.step(optimizer)
    for name, value in model.named_parameters():
        a = 3.0 * {"0": 0.1, "1": 0.0, "4": 0.5}[name[0]]
        torch.testing.assert_close(value, (moved[name] + a * start[name]) / (1 + a))
    with pytest.raises(InputError, match="the optimizer has none of the penalty's parameters; build it from the same"):
        penalty.step(torch.optim.SGD(network().parameters(), lr=0.1))


@pytest.mark.parametrize("in_loss", [True, False])
def test_si_adds_up_the_path_of_the_loss_alone(in_loss: bool) -> None:
    model = network().eval()
    penalty, optimizer = SI(model, strength=4.0, damping=0.05), torch.optim.SGD(model.parameters(), lr=0.1)
    known: dict[str, Tensor] = {}
    for _task in range(2):
        start = {name: value.detach().clone() for name, value in model.named_parameters()}
        path = {name: torch.zeros_like(value) for name, value in start.items()}
        for x, y in batches(8):
            before = {name: value.detach().clone() for name, value in model.named_parameters()}
            pure = F.cross_entropy(model(x), y)
            slopes = dict(
                zip(before, torch.autograd.grad(pure, list(model.parameters()), retain_graph=True), strict=True)
            )
            optimizer.zero_grad()
            (pure + penalty() if in_loss else pure).backward()
            optimizer.step()
            if in_loss:
                penalty.observe()
            else:
                penalty.step(optimizer)
            for name, value in model.named_parameters():
                path[name] -= slopes[name] * (value.detach() - before[name])
        penalty.consolidate()
        for name, value in model.named_parameters():
            share = (path[name] / ((value.detach() - start[name]).square() + 0.05)).clamp(min=0)
            known[name] = known.get(name, 0) + share
        assert penalty.importance is not None
        close(penalty.importance, known, 1e-3)
        assert float(penalty().detach()) == 0


def test_consolidate_adds_importance_and_anchors_again() -> None:
    model = network()
    penalty = EWC(model, X, strength=2.0, labels="exact")
    first = penalty.importance
    with torch.no_grad():
        model[4].weight += 1  # pyright: ignore[reportOperatorIssue]
    second = fisher_diagonal(model, X[:9], labels="exact")
    penalty.consolidate(X[:9])
    assert first is not None
    assert penalty.importance is not None
    close(penalty.importance, {name: first[name] + second[name] for name in first})
    assert float(penalty().detach()) == 0
    assert torch.equal(penalty.anchor["4.weight"], model[4].weight)


def test_measured_importance_can_be_given() -> None:
    model = network()
    fisher = fisher_diagonal(model, X, parameters=["0.weight", "4.weight"])
    penalty = EWC(model, importance=fisher, strength=2.0)
    assert list(penalty.anchor) == ["0.weight", "4.weight"]
    assert list(EWC(model, importance=fisher, parameters=["4.weight"]).anchor) == ["4.weight"]


def test_training_with_a_penalty_stays_nearer() -> None:
    def distance(penalized: bool) -> float:
        model = network()
        penalty, optimizer = EWC(model, (X, Y), strength=100.0), torch.optim.Adam(model.parameters(), 0.01)
        for x, y in batches(8) * 3:
            loss = F.cross_entropy(model(x), (y + 1) % 3) + (penalty() if penalized else 0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return float(penalty().detach())

    assert distance(True) < distance(False) / 3


def test_lwf_compares_with_the_teacher_as_it_was() -> None:
    model = network().train()
    keep = LwF(model, temperature=2.0, strength=3.0)
    teacher = copy.deepcopy(model).eval()
    with torch.no_grad():
        model[4].weight += 0.3  # pyright: ignore[reportOperatorIssue]
    logits = torch.cat([model(X), noise(3, COUNT, 2)], 1)  # two classes were added
    target = (teacher(X) / 2).softmax(1)
    expected = 3 * (target * (target.log() - (logits[:, :3] / 2).log_softmax(1))).sum(1).mean()
    loss = keep(logits, X)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(value.grad is None for value in keep.teacher.parameters())
    assert keep.teacher.training
    torch.testing.assert_close(LwF(teacher, scale="T2")(logits, X), 4 / 3 * expected)
    assert repr(keep) == "LwF(Sequential, strength=3, temperature=2, scale='none')"
    several = TwoHeads().eval()
    one = {"old": several(X)["old"]}
    assert float(LwF(several, tasks=["old"])(one, X).detach()) < 1e-6
    assert float(LwF(several)({**several(X), "third": logits}, X).detach()) < 1e-6


class Nested(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class Pictures(Dataset[Any]):
    """As a torchvision dataset without a transform."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, row: int) -> tuple[Image.Image, int]:
        return Image.new("RGB", (6, 6)), row


class Mixing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(108, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x.flatten(1) - x.flatten(1).mean(0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: EWC(network()), "there is neither a loader nor an importance; give a loader to measure on, or"),
        (lambda: EWC(network(), X, importance={}), "there is both a loader and an importance; give a loader"),
        (lambda: EWC(network(), X, strength=-1.0), "strength -1.0 is out of range; give a number that is not negative"),
        (lambda: EWC(network(), []), "the loader has no batches; give one with images"),
        (lambda: EWC(network(), [X.numpy()]), r"batches of a ndarray; give \(inputs, labels\) with float inputs"),
        (
            lambda: EWC(network(), Pictures()),
            "the Dataset gives no batches: default_collate: .*; add a transform to fl",
        ),
        (lambda: EWC(network(), X / 0), "the loader gives inputs that are not finite; leave them out"),
        (lambda: EWC(network(), [X, Y]), r"batches of a tensor of torch.int64; give \(inputs, labels\)"),
        (lambda: EWC(network(), [X[:4], X[:4, :, :5]]), r"several shapes \(\(3, 6, 6\), \(3, 5, 6\)\); resize them"),
        (lambda: EWC(network(), X, labels="empirical"), "a class index for each image and the output.*; give them, or"),
        (lambda: EWC(network(), (X, Y.float()), labels="empirical"), "a class index for each image"),
        (lambda: EWC(network(), (X, Y + 1), labels="empirical"), "exceed the task's 3 classes: count them from 0"),
        (lambda: EWC(TwoHeads(), (X, Y), labels="empirical"), "each image and output 'old'"),
        (lambda: EWC(TwoHeads(), X, tasks=["third"]), "the model has no output 'third'; it has old, new"),
        (lambda: EWC(network(), X, images=0), "images 0 is too small; give 1 or more"),
        (lambda: EWC(network(), X, parameters=["fc"]), r"no parameter 'fc'; give some of model.named_parameters\(\)"),
        (lambda: EWC(network().requires_grad_(False), X), "no parameter of the model requires a gradient; give"),
        (lambda: EWC(nn.Sequential(network(), Nested()), X), "answers with a tuple, but a tensor of logits"),
        (lambda: EWC(Mixing(), X), "depend on the other images of the batch"),
        (
            lambda: EWC(network(), importance={"4.bias": torch.ones(4)}),
            r"'4.bias' \[4\] does not fit the parameter \[3",
        ),
        (lambda: EWC(network(), importance={"4.bias": -torch.ones(3)}), "is negative or not finite; give what fisher"),
        (lambda: SI(network(), damping=0.0), "damping 0.0 is out of range; give a number above 0"),
        (lambda: LwF(TwoHeads(), tasks=["third"])(X, X), "the teacher has no output 'third'; it has old, new"),
        (lambda: LwF(network(), temperature=0.0), "give a temperature above 0"),
        (lambda: LwF(network(), scale="T"), "scale 'T' does not exist; give 'none' or 'T2'"),  # type: ignore[arg-type]
        (
            lambda: LwF(network())(noise(0, COUNT, 2), X),
            r"answers output \[22, 3\], the student \[22, 2\]; give the st",
        ),
        (
            lambda: LwF(TwoHeads())(noise(0, COUNT, 3), X),
            r"answers old \[22, 3\], the student output only; give the st",
        ),
    ],
)
def test_what_cannot_be_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_model_that_changed_its_form_is_named() -> None:
    model = network()
    penalty: WeightPenalty = L2SP(model)
    model[4] = nn.Linear(64, 5)
    with pytest.raises(InputError, match=r"parameter '4.weight' was \[3, 64\] and is \[5, 64\]; leave it out by param"):
        penalty()
    del model[4]
    with pytest.raises(InputError, match=r"parameter '4.weight' was \[3, 64\] and is gone; leave it out"):
        penalty()
    backbone = [name for name, _ in network().named_parameters() if not name.startswith("4.")]
    assert float(L2SP(model, parameters=backbone)().detach()) == 0


def test_the_names_are_public() -> None:
    assert {"EWC", "SI", "MAS", "L2SP", "LwF", "fisher_diagonal"} <= set(taskgraft.__all__)
