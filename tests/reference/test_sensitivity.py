"""The output sensitivity of MAS against its definition: a loop over images in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import timm
import torch
from torch import Tensor, nn

from reference.test_curvature import COUNT, MODELS, Shared, Tasks, agree, build
from taskgraft.curvature.fisher import output_sensitivity

pytestmark = pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel")  # torch, of its own copy

TIMM = {"test_vit": (64, {"img_size": 64}), "test_resnet": (96, {}), "test_efficientnet": (256, {})}


class Chain(nn.Module):
    """One task answers from the logits of the other, and a third has nothing to learn."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(12, 3), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        z = self.one(x.flatten(1))
        return {"a": z, "b": self.two(z), "fixed": x.flatten(1)[:, :5]}


class Stubborn(nn.Module):
    """What vmap cannot run, beside an output with nothing to learn."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(12))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = x.flatten(1) * (1 if float(x.detach().abs().sum()) > 0 else 2)
        return {"a": torch.sin(self.scale)[None] * x, "b": torch.exp(self.scale)[None] * x, "fixed": x}


def build_timm(name: str) -> tuple[Tasks, Tensor]:
    width, settings = TIMM[name]
    torch.manual_seed(0)
    model = Tasks(timm.create_model(name, num_classes=0, **cast(Any, settings)), width).double()
    for key, buffer in model.named_buffers():
        if key.endswith("running_mean"):
            buffer.normal_(std=0.3)
        if key.endswith("running_var"):
            buffer.uniform_(0.5, 2.0)
    for param in model.parameters():
        if param.dim() == 1:  # biases of 0 and scales of 1 would hide mistakes
            nn.init.uniform_(param, 0.5, 1.5)
    return model, torch.randn(COUNT, 3, 64, 64, dtype=torch.float64)


def measure(model: nn.Module, images: Tensor, **settings: Any) -> dict[str, Tensor]:
    names = [name for name, _ in model.named_parameters()]
    settings = {"tasks": ["a", "b"], **settings}
    return output_sensitivity(model, lambda i, j: images[i:j], len(images), names, **settings)


def definition(model: nn.Module, images: Tensor, tasks: tuple[str, ...] = ("a", "b")) -> dict[str, Tensor]:
    """Loop over the images: the gradient of one number for each."""
    model.eval()
    params = dict(model.named_parameters())
    sums = {name: torch.zeros_like(param) for name, param in params.items()}
    for image in images:
        outputs = model(image[None])
        total = torch.stack([outputs[task].square().sum() for task in tasks]).sum()
        grads = torch.autograd.grad(total, list(params.values()), allow_unused=True)
        for name, grad in zip(params, grads, strict=True):
            if grad is not None:
                sums[name] += grad.abs() / len(images)
    return sums


@pytest.mark.parametrize("make", [*(lambda n=n: build(n) for n in MODELS), *(lambda n=n: build_timm(n) for n in TIMM)],
                         ids=[*MODELS, *TIMM])  # fmt: skip
def test_sensitivity_matches_definition(make: Callable[[], tuple[Tasks, Tensor]]) -> None:
    model, images = make()
    expected = definition(model, images)
    assert sum(float(value.sum()) for value in expected.values()) > 0
    agree(measure(model, images), expected)
    agree(measure(model, images, chunk=3), expected)
    agree(measure(model, images, tasks=["b"]), definition(model, images, ("b",)))


@pytest.mark.parametrize("name", ["convolutions", "shared", "swin"])
def test_chunks_change_nothing(name: str) -> None:
    model, images = build(name)
    whole = measure(model, images, chunk=COUNT)
    for chunk in (1, 2, 3, None):
        agree(measure(model, images, chunk=chunk), whole, rtol=1e-9)


def test_blocks_change_nothing() -> None:
    model, images = build("convolutions")
    images = torch.cat([images, images.flip(0) / 2, images**2, torch.sin(images), images.mT])  # over 8 at once
    agree(measure(model, images), definition(model, images))


def test_the_magnitude_is_that_of_the_sum_over_tasks() -> None:
    model, images = build("mlp")
    both, a, b = (measure(model, images, tasks=tasks) for tasks in (["a", "b"], ["a"], ["b"]))
    key = "backbone.1.weight"
    assert (both[key] <= a[key] + b[key] + 1e-12).all()
    assert (both[key] < 0.9 * (a[key] + b[key])).any()
    agree(measure(model, images, tasks=["b", "a"]), both, rtol=1e-12)


@pytest.mark.parametrize("tasks", [("a", "b"), ("a",), ("a", "b", "fixed"), ("fixed",)])
def test_tasks_may_build_on_each_other_or_on_no_parameter(tasks: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    model, images = Chain().double(), torch.randn(COUNT, 3, 2, 2).double()
    if tasks == ("fixed",):
        assert not any(value.any() for value in measure(model, images, tasks=tasks).values())
    else:
        agree(measure(model, images, tasks=tasks), definition(model, images, tasks))


def test_model_without_vmap_falls_back_to_a_loop() -> None:
    torch.manual_seed(0)
    model, images = Stubborn().double(), torch.randn(COUNT, 3, 2, 2).double()
    agree(measure(model, images, tasks=["a", "b", "fixed"]), definition(model, images))


@pytest.mark.parametrize("name", ["resnet", "efficientnet", "vit"])
def test_single_precision_is_close(name: str) -> None:
    model, images = build(name)
    expected = measure(model, images)
    result = measure(model.float(), images.float())
    for key, value in expected.items():
        assert result[key].dtype == torch.float32
        assert result[key].device == value.device
        assert (result[key].double() - value).norm() <= 1e-4 * value.norm() + 1e-5, key


def test_model_is_unchanged() -> None:
    torch.manual_seed(0)
    model = Tasks(nn.Sequential(nn.Conv2d(3, 6, 2), nn.BatchNorm2d(6), nn.Dropout(), nn.Flatten(), Shared()), 6)
    images = torch.randn(COUNT, 3, 2, 3)
    with torch.no_grad():
        model.train()
        cast(nn.Sequential, model.backbone)[1].eval()
    model.head_b.bias.requires_grad_(False)
    model.head_a.weight.grad = torch.full_like(model.head_a.weight, 7.0)
    modes = [module.training for module in model.modules()]
    flags = [param.requires_grad for param in model.parameters()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    random = torch.get_rng_state()
    with torch.no_grad():
        result = measure(model, images)
    assert modes == [module.training for module in model.modules()]
    assert flags == [param.requires_grad for param in model.parameters()]
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert [name for name, param in model.named_parameters() if param.grad is not None] == ["head_a.weight"]
    assert (model.head_a.weight.grad == 7.0).all()
    agree(measure(model.eval(), images), result)


def test_only_named_parameters_are_measured() -> None:
    model, images = build("convolutions")
    full = measure(model, images, tasks=["a"])
    names = ["backbone.0.weight", "head_a.bias"]
    agree(
        output_sensitivity(model, lambda i, j: images[i:j], COUNT, names, ["a"]), {name: full[name] for name in names}
    )
    assert not full["head_b.weight"].any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"count": 0}, "at least one image"),
        ({"names": ["nothing"]}, "no parameter 'nothing'"),
        ({"tasks": ["c"]}, "no task 'c'; it has 'a', 'b'"),
        ({"tasks": []}, "no tasks"),
        ({"chunk": 0}, "chunk is 0"),
    ],
)
def test_inconsistent_request_is_refused(settings: dict[str, Any], message: str) -> None:
    model, images = build("mlp")
    request: dict[str, Any] = {"count": COUNT, "names": ["head_a.bias"], "tasks": ["a"], **settings}
    with pytest.raises(ValueError, match=message):
        output_sensitivity(model, lambda i, j: images[i:j], **request)
