"""The Fisher diagonal against its definition: a loop over images and classes in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import timm
import torch
from timm.models.efficientnet import _gen_efficientnet_lite
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn
from torch.nn import functional as F

from taskgraft.curvature import fallback, labels
from taskgraft.curvature.fisher import JOINT, fisher_diagonal
from taskgraft.curvature.labels import hash_uniforms
from taskgraft.curvature.probe import probe_model
from taskgraft.seeding import splitmix64
from taskgraft.types import Params

COUNT = 4
pytestmark = pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel")  # torch, of its own copy


class Tasks(nn.Module):
    """A backbone under two heads of 3 and 4 classes."""

    def __init__(self, backbone: nn.Module, width: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head_a = nn.Linear(width, 3)
        self.head_b = nn.Linear(width, 4)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.backbone(images)
        return {"a": self.head_a(features), "b": self.head_b(features)}


class Shared(nn.Module):
    """One layer called twice, one weight in two modules, bare parameters of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Linear(6, 6)
        self.tied = nn.Linear(6, 6, bias=False)
        self.other = nn.Linear(6, 6, bias=False)
        self.other.weight = self.tied.weight
        self.token = nn.Parameter(torch.randn(1, 1, 6))
        self.position = nn.Parameter(torch.randn(1, 3, 6))
        self.gamma = nn.Parameter(torch.randn(6))
        self.scale = nn.Parameter(torch.randn(3))
        self.table = nn.Parameter(torch.randn(5, 6))
        self.idle = nn.Parameter(torch.randn(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(len(x), 2, 6)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.position
        x = x + self.table[torch.tensor([0, 2, 2])]
        x = torch.tanh(self.twice(torch.tanh(self.twice(x)))) * self.gamma
        x = x.mul(self.scale.reshape(1, -1, 1))
        return (self.other(torch.tanh(self.tied(x)))).sum(1)


class Sequence(nn.Module):
    """Positions before samples, a step in place after a layer: what a rule by shapes gets silently wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 5), nn.Linear(5, 6)
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.one(x.reshape(len(x), 3, 4).transpose(0, 1)))  # [3, B, 5]: 3 is also the probe's size
        y = self.two(x)
        y = self.norm(y.transpose(0, 1).transpose(1, 2)).relu_()
        return y.sum(2) + x.sum((0, 2))[:, None]


class Windows(nn.Module):
    """Samples and windows in one dimension, as shifted-window networks have them."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.layer = nn.LayerNorm(6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        windows = x.reshape(2 * len(x), 6)
        return torch.tanh(self.layer(self.norm(windows))).reshape(len(x), -1)


class Functional(nn.Module):
    """Torch's functions called as a person would, with their defaults, and parameters that only meet each other."""

    def __init__(self) -> None:
        super().__init__()
        self.grouped, self.shift = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(6))
        self.batch, self.layer = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(6))
        self.kernel, self.weight = nn.Parameter(torch.randn(6, 3, 1, 1)), nn.Parameter(torch.randn(4, 6))
        self.one, self.two, self.three = (nn.Parameter(torch.randn(4)) for _ in range(3))
        self.register_buffer("mean", torch.randn(6))
        self.register_buffer("var", torch.rand(6) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.group_norm(torch.conv2d(x, self.kernel), 3, self.grouped, self.shift)
        x = F.batch_norm(x, cast(Tensor, self.mean), cast(Tensor, self.var), self.batch)
        x = F.linear(F.layer_norm(x.mean((2, 3)), (6,), self.layer), self.weight)
        return 1.5 * x * (self.one * self.two) + 2 * self.three


class Attention(nn.Module):
    """torch's own attention, whose input projection only the generic path can see."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(len(x), 2, 6)
        return self.attention(x, x, x, need_weights=False)[0].sum(1)


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8),
        nn.Conv2d(8, 16, 3, padding=1, groups=8),
        nn.Conv2d(16, 16, (3, 5), stride=(1, 2), padding=(1, 3), groups=16),
        nn.Conv2d(16, 8, 1),
        nn.GroupNorm(2, 8),
        nn.Conv2d(8, 12, (3, 2), groups=4, stride=(2, 1), padding="valid"),
        nn.ReLU(),
        nn.Conv2d(12, 12, (2, 3), padding="same"),
        nn.BatchNorm2d(12),
        nn.Conv2d(12, 6, 3, padding=1, padding_mode="circular"),
        nn.AdaptiveAvgPool2d(2),
        nn.Conv2d(6, 10, 3, padding=1),
        nn.Dropout(0.5),
        nn.Flatten(),
    )


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 7), nn.BatchNorm1d(7), nn.Tanh(), nn.LayerNorm(7))


def thin(name: str, **settings: Any) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, num_classes=0, **settings)


def thin_lite0() -> nn.Module:
    """All layers of the network, with a quarter of the channels."""
    return _gen_efficientnet_lite("tf_efficientnet_lite0", 0.25, num_classes=0, pad_type="same", bn_eps=1e-3)


MODELS: dict[str, tuple[Callable[[], nn.Module], int, tuple[int, ...]]] = {
    "mlp": (mlp, 7, (3, 2, 2)),
    "convolutions": (convolutions, 40, (3, 14, 14)),
    "shared": (Shared, 6, (3, 2, 2)),
    "attention": (Attention, 6, (3, 2, 2)),
    "sequence": (Sequence, 6, (3, 2, 2)),
    "windows": (Windows, 10, (3, 2, 2)),
    "functional": (Functional, 4, (3, 2, 2)),
    "resnet": (lambda: ResNet(cast(Any, BasicBlock), (1, 2, 1, 1), 0, channels=(8, 16, 24, 32)), 32, (3, 32, 32)),
    "efficientnet": (thin_lite0, 1280, (3, 32, 32)),
    "mobilenet": (thin("mobilenetv3_small_050"), 1024, (3, 32, 32)),
    "vit": (thin("vit_tiny_patch16_224", img_size=32, embed_dim=24, depth=2, init_values=0.5), 24, (3, 32, 32)),
    "convnext": (thin("convnext_atto", depths=(1, 1, 2, 1), dims=(8, 12, 16, 20)), 20, (3, 64, 64)),
    "swin": (thin("swin_tiny_patch4_window7_224", img_size=64, window_size=4, embed_dim=12, depths=(1, 2),
                  num_heads=(2, 2)), 24, (3, 64, 64)),
}  # fmt: skip


def build(name: str) -> tuple[Tasks, Tensor]:
    make, width, shape = MODELS[name]
    torch.manual_seed(0)
    model = Tasks(make(), width).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    for name_, param in model.named_parameters():
        if param.dim() == 1 and name_.endswith("weight"):
            nn.init.uniform_(param, 0.5, 1.5)
    return model, torch.randn(COUNT, *shape, dtype=torch.float64)


def measure(model: nn.Module, images: Tensor, **settings: Any) -> dict[str, Tensor]:
    names = [name for name, _ in model.named_parameters()]
    settings = {"tasks": ["a", "b"], **settings}
    return fisher_diagonal(model, lambda i, j: images[i:j], len(images), names, **settings)


def definition(
    model: nn.Module,
    images: Tensor,
    weights: Callable[[str, int, Tensor], Tensor],
    tasks: tuple[str, ...] = ("a", "b"),
) -> dict[str, Tensor]:
    """Loop over images, tasks and classes; `weights(task, image, p)` weighs the classes."""
    model.eval()
    params = dict(model.named_parameters())
    sums = {name: torch.zeros_like(param) for name, param in params.items()}
    for i in range(len(images)):
        outputs = model(images[i : i + 1])
        for task in tasks:
            logs = outputs[task][0].log_softmax(0)
            for c, weight in enumerate(weights(task, i, logs.detach().exp())):
                if weight > 0:
                    grads = torch.autograd.grad(logs[c], list(params.values()), retain_graph=True, allow_unused=True)
                    for name, grad in zip(params, grads, strict=True):
                        if grad is not None:
                            sums[name] += weight * grad.square() / len(images)
    return sums


def drawn(task: str, i: int, p: Tensor, draws: int = 1) -> Tensor:
    """Weigh the classes as labels="sampled" with seed 3 draws them."""
    u = hash_uniforms(3, task, 0, COUNT, draws)[:, i]
    picks = [int((p.cumsum(0) <= float(one)).sum()) for one in u]
    return F.one_hot(torch.tensor(picks), len(p)).double().mean(0)


def agree(result: dict[str, Tensor], expected: dict[str, Tensor], rtol: float = 1e-6) -> None:
    assert result.keys() == expected.keys()
    for name, value in expected.items():
        assert result[name].shape == value.shape
        assert result[name].is_contiguous()
        scale = float(value.abs().max())
        torch.testing.assert_close(
            result[name], value, rtol=rtol, atol=rtol * scale * 1e-3, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.mark.parametrize("name", MODELS)
def test_sampled_matches_definition(name: str) -> None:
    model, images = build(name)
    expected = definition(model, images, drawn)
    assert sum(float(value.sum()) for value in expected.values()) > 0
    agree(measure(model, images, seed=3), expected)
    agree(measure(model, images, seed=3, chunk=3), expected)


@pytest.mark.parametrize("name", ["convolutions", "shared", "vit"])
def test_exact_matches_definition(name: str) -> None:  # D6
    model, images = build(name)
    agree(measure(model, images, labels="exact"), definition(model, images, lambda task, i, p: p))


@pytest.mark.parametrize("name", ["convolutions", "shared"])
def test_empirical_skips_unlabeled_images(name: str) -> None:
    model, images = build(name)
    targets = {"a": torch.tensor([2, -1, 0, 1]), "b": torch.tensor([-1, -1, 3, -1])}

    def weights(task: str, i: int, p: Tensor) -> Tensor:
        target = int(targets[task][i])
        share = COUNT / int((targets[task] >= 0).sum())
        return torch.zeros_like(p) if target < 0 else F.one_hot(torch.tensor(target), len(p)).double() * share

    agree(
        measure(model, images, labels="empirical", targets=targets, chunk=2),
        definition(model, images, weights),
    )


class Side(nn.Module):
    """The same model, whose outputs lie side by side as those of one task."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {JOINT: torch.cat(list(self.model(images).values()), 1)}


def joint_definition(
    model: nn.Module, images: Tensor, weights: Callable[[str, int, Tensor], Tensor]
) -> dict[str, Tensor]:
    result = definition(Side(model), images, weights, (JOINT,))
    return {name.removeprefix("model."): value for name, value in result.items()}


@pytest.mark.parametrize("name", ["convolutions", "shared", "attention"])
def test_joint_softmax_matches_definition(name: str) -> None:
    model, images = build(name)
    agree(measure(model, images, softmax="joint", seed=3, chunk=3), joint_definition(model, images, drawn))
    exact = measure(model, images, softmax="joint", labels="exact")
    agree(exact, joint_definition(model, images, lambda task, i, p: p))
    assert not torch.allclose(exact["head_a.weight"], measure(model, images, labels="exact")["head_a.weight"])


def test_joint_targets_take_the_first_task() -> None:
    model, images = build("mlp")
    targets = {"a": torch.tensor([2, -1, 0, -1]), "b": torch.tensor([1, 3, -1, -1])}
    place = torch.tensor([2, 3 + 3, 0, -1])  # among the seven outputs, those of "a" first

    def weights(task: str, i: int, p: Tensor) -> Tensor:
        return F.one_hot(place[i].clamp(min=0), len(p)).double() * (COUNT / 3 if place[i] >= 0 else 0)

    result = measure(model, images, softmax="joint", labels="empirical", targets=targets)
    agree(result, joint_definition(model, images, weights))
    alone = {"a": torch.tensor([2, 1, 0, 1])}  # one task's labels are enough
    assert measure(model, images, softmax="joint", labels="empirical", targets=alone)["head_b.weight"].abs().sum() > 0


def test_draws_average_and_tend_to_the_exact_value() -> None:
    model, images = build("mlp")
    expected = definition(model, images, lambda task, i, p: drawn(task, i, p, draws=3))
    agree(measure(model, images, seed=3, draws=3), expected)
    many, exact = measure(model, images, draws=400), measure(model, images, labels="exact")
    agree(many, exact, rtol=0.35)
    for name, value in exact.items():
        torch.testing.assert_close(many[name].sum(), value.sum(), rtol=0.1, atol=0)


@pytest.mark.parametrize("name", ["convolutions", "swin"])
def test_chunks_change_nothing(name: str) -> None:
    model, images = build(name)
    whole = measure(model, images, seed=5, chunk=COUNT)
    for chunk in (1, 3, None):
        agree(measure(model, images, seed=5, chunk=chunk), whole, rtol=1e-9)


@pytest.mark.parametrize("name", ["resnet", "efficientnet", "convnext", "vit"])
def test_single_precision_is_close(name: str) -> None:
    model, images = build(name)
    targets = {"a": torch.tensor([0, 1, 2, 0]), "b": torch.tensor([0, 1, 2, 3])}
    expected = measure(model, images, labels="empirical", targets=targets)
    result = measure(model.float(), images.float(), labels="empirical", targets=targets)
    for key, value in expected.items():
        assert result[key].dtype == torch.float32
        assert (result[key].double() - value).norm() <= 1e-4 * value.norm() + 1e-12, key


def test_hash_uniforms_depend_on_position_only() -> None:
    whole = hash_uniforms(1, "a", 0, 1000, 4)
    assert (hash_uniforms(1, "a", 300, 50, 2) == whole[:2, 300:350]).all()
    assert abs(whole.mean() - 0.5) < 0.02
    assert whole.min() >= 0
    assert whole.max() < 1
    assert not (hash_uniforms(2, "a", 0, 1000, 4) == whole).any()
    assert not (hash_uniforms(1, "b", 0, 1000, 4) == whole).any()


def test_fisher_is_not_the_squared_mean() -> None:  # D1
    model, images = build("mlp")
    once = measure(model, images[:1].repeat(2, 1, 1, 1), labels="exact")
    often = measure(model, images[:1].repeat(64, 1, 1, 1), labels="exact")
    agree(often, once)
    model.zero_grad()
    z = model(images)["a"].log_softmax(1)
    z[:, 0].mean().backward()
    squared_mean = model.head_a.weight.grad
    assert squared_mean is not None
    expected = measure(model, images, tasks=["a"], labels="empirical", targets={"a": torch.zeros(COUNT).long()})
    assert not torch.allclose(squared_mean.square(), expected["head_a.weight"], rtol=0.05)


def test_model_is_unchanged() -> None:  # D4
    model, images = build("convolutions")
    expected = measure(model.eval(), images)
    model.train()
    inner = cast(nn.Sequential, model.backbone)
    inner[4].eval()
    model.head_b.bias.requires_grad_(False)
    model.head_a.weight.grad = torch.full_like(model.head_a.weight, 7.0)
    modes = [module.training for module in model.modules()]
    flags = [param.requires_grad for param in model.parameters()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    random = torch.get_rng_state()
    with torch.no_grad():
        agree(measure(model, images), expected)
    assert modes == [module.training for module in model.modules()]
    assert flags == [param.requires_grad for param in model.parameters()]
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert (model.head_a.weight.grad == 7.0).all()
    assert cast(nn.Conv2d, inner[0]).weight.grad is None


def test_only_named_parameters_are_measured() -> None:
    model, images = build("convolutions")
    full = measure(model, images, tasks=["a"])
    names = ["backbone.0.weight", "head_a.bias"]
    some = fisher_diagonal(model, lambda i, j: images[i:j], COUNT, names, ["a"])
    agree(some, {name: full[name] for name in names})
    assert not full["head_b.weight"].any()


@pytest.mark.parametrize(
    ("name", "loose"),
    [
        ("convolutions", set()),
        ("resnet", set()),
        ("efficientnet", set()),
        ("mobilenet", set()),
        ("vit", set()),
        ("convnext", set()),
        ("shared", {"twice.weight", "twice.bias", "tied.weight", "table", "idle"}),
        ("windows", set()),
        ("functional", {"one", "two", "three"}),
        (
            "swin",
            {
                f"layers.{block}.attn.relative_position_bias_table"
                for block in ("0.blocks.0", "1.blocks.0", "1.blocks.1")
            },
        ),
        ("mlp", set()),
        ("sequence", {"one.weight", "one.bias", "two.weight", "two.bias"}),
    ],
)
def test_rules_cover_architectures(name: str, loose: set[str]) -> None:
    model, images = build(name)
    model.eval().requires_grad_(False)
    plan = probe_model(model, lambda i, j: images[i:j], COUNT, dict(model.named_parameters()), ["a", "b"])
    assert {key.removeprefix("backbone.") for key in plan.without_rule} == loose


def test_model_without_vmap_falls_back_to_a_loop() -> None:
    class Stubborn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(12))

        def forward(self, x: Tensor) -> Tensor:
            x = x.flatten(1)
            return torch.sin(self.scale)[None] * x * (1 if float(x.detach().abs().sum()) > 0 else 2)

    torch.manual_seed(0)
    model, images = Tasks(Stubborn(), 12).double(), torch.randn(COUNT, 3, 2, 2).double()
    agree(measure(model, images, seed=3), definition(model, images, drawn))


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x.flatten(1), 0.5, training=True)


def test_random_or_batch_dependent_model_is_refused() -> None:
    images = torch.randn(COUNT, 3, 2, 2)
    with pytest.raises(ValueError, match="the model draws random numbers"):
        measure(Tasks(Noisy(), 12), images)
    mixing = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12, track_running_stats=False))
    with pytest.raises(ValueError, match="BatchNorm without running statistics"):
        measure(Tasks(mixing, 12), images)
    mixing[1] = nn.BatchNorm1d(12, affine=False, track_running_stats=False)
    with pytest.raises(ValueError, match="depend on the other images"):
        measure(Tasks(mixing, 12), images)
    with pytest.raises(ValueError, match="turn random augmentation off"):
        fisher_diagonal(Tasks(nn.Flatten(), 12), lambda i, j: torch.randn(j - i, 12), 4, [], ["a"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"count": 0}, "at least one image"),
        ({"names": ["nothing"]}, "no parameter 'nothing'"),
        ({"tasks": ["c"]}, "no task 'c'; it has 'a', 'b'"),
        ({"tasks": []}, "no tasks"),
        ({"draws": 0}, "draw at least one label"),
        ({"labels": "true"}, "choose exact, sampled or empirical"),
        ({"labels": "empirical"}, r"needs targets\['a'\]"),
        ({"labels": "empirical", "targets": {"a": torch.zeros(9).long()}}, "must have 4 entries"),
        ({"labels": "empirical", "targets": {"a": torch.full((4,), -1)}}, "not -1"),
        ({"labels": "empirical", "targets": {"a": torch.full((4,), 3)}}, "the task's 3 classes"),
        ({"chunk": 0}, "chunk is 0"),
    ],
)
def test_inconsistent_request_is_refused(settings: dict[str, Any], message: str) -> None:
    model, images = build("mlp")
    request: dict[str, Any] = {"count": COUNT, "names": ["head_a.bias"], "tasks": ["a"], **settings}
    with pytest.raises(ValueError, match=message):
        fisher_diagonal(model, lambda i, j: images[i:j], **request)


@pytest.mark.parametrize(("name", "calls"), [("attention", 1), ("shared", 1), ("by value", COUNT)])
def test_fallback_is_vectorized_if_possible(name: str, calls: int) -> None:
    class ByValue(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(6))

        def forward(self, x: Tensor) -> Tensor:
            x = x.flatten(1)[:, :6]
            return x * self.weight if float(x.detach().sum()) > 1e9 else 2 * x * self.weight  # no vmap sees a value

    if name == "by value":
        model, images = Tasks(ByValue(), 6).double(), torch.randn(COUNT, 3, 2, 2, dtype=torch.float64)
    else:
        model, images = build(name)
    model.eval().requires_grad_(False)
    params: Params = {key: value for key, value in model.named_parameters() if key.startswith("backbone")}
    params = {key: params[key] for key in fallback.find_reachable(model, params, images, ["a", "b"])}
    add = fallback.choose_sum(model, params, images, ["a", "b"], 2)
    seen: list[int] = []
    model.register_forward_pre_hook(lambda module, args: seen.append(1))
    add(images, [{task: torch.ones_like(rows) for task, rows in model(images).items()}])
    assert len(seen) == 1 + calls  # one for the shapes


def test_splitmix64_matches_published_values() -> None:
    """The first outputs of SplitMix64 from the seed 1234567, as its authors' program prints them."""
    golden, state = 0x9E3779B97F4A7C15, 1234567
    for expected in (6457827717110365317, 3203168211198807973, 9817491932198370423):
        assert int(splitmix64(np.array([state], dtype=np.uint64))[0]) == expected
        state = (state + golden) % 2**64


def test_inverse_cdf_with_sum_below_one() -> None:
    short = torch.tensor([[0.5, 0.25], [0.5, 0.5]], dtype=torch.float64)
    assert labels._inverse_cdf(short, torch.tensor([0.9, 0.4], dtype=torch.float64)).tolist() == [1, 0]


def test_default_seed_is_0() -> None:
    model, images = build("mlp")
    agree(measure(model, images), measure(model, images, seed=0), rtol=1e-12)
    assert not torch.equal(measure(model, images)["head_a.weight"], measure(model, images, seed=1)["head_a.weight"])
