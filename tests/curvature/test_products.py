"""The arithmetic of a GPU, as far as a processor shows it: what is rounded, what is not, and by how much it matters."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from taskgraft.config import FisherPrecision
from taskgraft.curvature import per_sample_sums, products
from taskgraft.curvature.fisher import fisher_diagonal, output_sensitivity
from taskgraft.methods import Ewc, Mas
from taskgraft.models.classifier import grow
from taskgraft.types import Params, TrainingData
from toys import NEW, make_images, parent

BACKENDS: Any = torch.backends  # torch's annotations lack cudnn.conv
PLACES = (BACKENDS.cuda.matmul, BACKENDS.mkldnn.matmul, BACKENDS.cudnn.conv, BACKENDS.cudnn.rnn)
CPU = torch.device("cpu")
COUNT = 6


def states() -> tuple[list[str], tuple[str, bool] | str]:
    """What torch's newer switches say, and its older ones, unless they contradict them."""
    try:
        older = torch.get_float32_matmul_precision(), BACKENDS.cudnn.allow_tf32
    except RuntimeError:
        older = "a contradiction"
    return [place.fp32_precision for place in PLACES], older


def multiplying() -> tuple[str, str]:
    return BACKENDS.cuda.matmul.fp32_precision, BACKENDS.cudnn.conv.fp32_precision


class One(nn.Module):
    """A network with one named output, which notes the arithmetic of its passes."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.seen: set[tuple[str, str]] = set()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        self.seen.add(multiplying())
        return {"t": self.network(images)}


def network(arch: str) -> tuple[One, Tensor]:
    torch.manual_seed(0)
    size = 160 if arch == "test_vit" else 48
    net = timm.create_model(arch, num_classes=5)
    for value in net.parameters():  # no layer starts at zero, as the last ones of residual blocks do
        if value.dim() == 1:
            value.data.add_(0.3 * torch.rand_like(value))
    return One(net), torch.rand(COUNT, 3, size, size) * 2 - 1


def fisher(model: One, images: Tensor, precision: FisherPrecision = "auto") -> Params:
    names = [name for name, _ in model.named_parameters()]
    targets = {"t": torch.arange(len(images)) % 5}
    return fisher_diagonal(
        model, lambda i, j: images[i:j], len(images), names, ["t"], labels="empirical", targets=targets,
        precision=precision,
    )  # fmt: skip


@pytest.mark.parametrize("arch", ["test_resnet", "test_efficientnet", "test_vit", "resnet18"])
def test_rounded_sums_are_near_those_of_float64(arch: str) -> None:
    model, images = network(arch)
    exact = fisher(copy.deepcopy(model).double(), images.double())
    rounded, full = fisher(model, images, "tf32"), fisher(model, images)
    errors = {name: float((rounded[name].double() - value).norm() / value.norm()) for name, value in exact.items()}
    worst = max(errors, key=lambda name: errors[name])
    assert errors[worst] < 1e-3, worst
    assert errors[worst] > 1e-5, "nothing was rounded"
    assert all(float((full[name].double() - value).norm() / value.norm()) < 1e-5 for name, value in exact.items())


@pytest.mark.parametrize("precision", ["auto", "fp32", "tf32"])
def test_only_sums_leave_full_float32(precision: FisherPrecision, monkeypatch: pytest.MonkeyPatch) -> None:
    in_sums: set[tuple[str, str]] = set()

    def operand(values: Tensor) -> Tensor:
        in_sums.add(multiplying())
        return products.operand(values)

    monkeypatch.setattr(per_sample_sums, "operand", operand)
    monkeypatch.setattr(products, "SWITCHED", ("cpu",))
    before = multiplying()
    model, images = network("test_efficientnet")
    fisher(model, images, precision)
    assert model.seen == {("ieee", "ieee")}
    assert in_sums == ({("tf32", "tf32")} if precision == "tf32" else {("ieee", "ieee")})
    assert multiplying() == before


def test_a_processor_switches_nothing() -> None:
    before = multiplying()
    model, images = network("test_efficientnet")
    fisher(model, images, "tf32")
    assert model.seen == {before}


@pytest.fixture
def defaults() -> Iterator[None]:
    """Leave the process with the switches that it had."""
    before = states()
    yield
    torch.set_float32_matmul_precision("highest")
    BACKENDS.cudnn.allow_tf32 = True
    for place, own in zip(PLACES, before[0], strict=True):
        place.fp32_precision = own
    assert states() == before


@pytest.mark.parametrize(
    "switch",
    [
        lambda: None,
        lambda: torch.set_float32_matmul_precision("high"),
        lambda: torch.set_float32_matmul_precision("medium"),
        lambda: setattr(BACKENDS.cudnn, "allow_tf32", False),
        lambda: setattr(BACKENDS.cudnn.conv, "fp32_precision", "ieee"),
        lambda: setattr(BACKENDS.mkldnn.matmul, "fp32_precision", "bf16"),
    ],
    ids=["default", "high", "medium", "older switch", "newer switch", "processor"],
)
def test_older_and_newer_switches_agree_inside_and_come_back(
    switch: Callable[[], None], defaults: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "SWITCHED", ("cpu",))
    switch()
    before = states()
    with products.full_float32(CPU):
        full = states()
        assert (multiplying(), full[1]) == (("ieee", "ieee"), ("highest", False))
        with products.tensor_cores(True, CPU):
            assert (multiplying(), states()[1]) == (("tf32", "tf32"), ("high", True))
        assert states() == full
    assert states() == before


def test_what_the_program_had_set_comes_back_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "SWITCHED", ("cpu",))
    before = multiplying()
    model, images = network("test_resnet")
    with pytest.raises(RuntimeError):
        fisher(model, images[:, :2], "tf32")
    assert multiplying() == before
    assert products.operand(images) is images


def test_operands_are_rounded_to_nearest_even() -> None:
    values = torch.cat([torch.randn(1000), torch.tensor([0.0, -0.0, 1.0, 1 + 2**-11, 1 + 3 * 2**-11, -1 - 2**-11])])
    assert products.operand(values) is values
    with products.tensor_cores(True, CPU):
        rounded = products.operand(values)
        assert torch.equal(products.operand(rounded), rounded)
        assert products.operand(values.double()).dtype == torch.float64
    mantissa, exponent = np.frexp(values.numpy().astype(np.float64))
    expected = np.ldexp(np.round(mantissa * 2**11) / 2**11, exponent)  # numpy rounds ties to even
    np.testing.assert_array_equal(rounded.numpy(), expected.astype(np.float32))


def test_a_processor_rounds_only_when_told() -> None:
    assert [products.use_tensor_cores(choice, CPU) for choice in ("auto", "fp32", "tf32")] == [False, False, True]


@pytest.mark.parametrize("settings", [Ewc(), Mas()])
def test_a_run_measures_as_its_settings_say(settings: Ewc | Mas) -> None:
    remember = settings.build().remember
    assert remember is not None
    found = {}
    for precision in ("auto", "fp32", "tf32"):
        sources = TrainingData(make_images(8, NEW, 1), None, 1, "none", 0, fisher_precision=precision)
        found[precision] = remember(grow(parent(), NEW, 0), sources, {})["importance"]
    assert all(torch.equal(value, found["fp32"][name]) for name, value in found["auto"].items())
    assert any(not torch.equal(value, found["fp32"][name]) for name, value in found["tf32"].items())


def test_sensitivity_is_rounded_too() -> None:
    model, images = network("test_resnet")
    names = [name for name, _ in model.named_parameters()]
    full, rounded = (
        output_sensitivity(model, lambda i, j: images[i:j], COUNT, names, ["t"], precision=precision)
        for precision in ("fp32", "tf32")
    )
    errors = [float((rounded[name] - value).norm() / value.norm()) for name, value in full.items()]
    assert 1e-6 < max(errors) < 1e-3
