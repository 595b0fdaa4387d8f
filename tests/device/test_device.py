"""What must hold on the device of training, whichever it is: `make test-gpu` runs this where there is a GPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from taskgraft import data, distributed
from taskgraft.bundle import Bundle
from taskgraft.config import FisherPrecision
from taskgraft.curvature import fisher
from taskgraft.data.augmentation import AUGMENT
from taskgraft.data.placement import place
from taskgraft.data.transforms import Preprocessing
from taskgraft.serving.model import load_model
from taskgraft.training import checkpoints, loop
from toys import NEW, OLD, RUN, digest, make_data, make_images, parent, start_run, weights

DEVICE = distributed.device()
CONFIG = replace(RUN, deterministic=True)
METHODS = ["finetune", "distill", "distill(teacher=live, loss=logits, blend=0.5)", "ewc(images=16)", "si", "replay"]


def run(method: str, device: torch.device = DEVICE, resident: bool = False) -> dict[str, torch.Tensor]:
    """The weights after a run whose model is on a device, and whose pixels are there or not."""
    state, built, sources = start_run(method, CONFIG, parent().to(device))
    if resident:
        sources = sources._replace(new=place(sources.new, device, free=2**40))
    return weights(loop.fit(state, built, sources, CONFIG))


@pytest.fixture(autouse=True)
def usual_kernels():
    """Leave the process with the kernels that other tests expect."""
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_is_that_of_the_processor_to_rounding(method: str) -> None:
    here, there = run(method), run(method, torch.device("cpu"))
    for name, value in there.items():
        torch.testing.assert_close(
            here[name].cpu(), value, rtol=1e-3, atol=1e-4, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize("method", METHODS)
def test_runs_repeat_their_bits_wherever_the_pixels_wait(method: str) -> None:
    first = digest(run(method))
    assert digest(run(method)) == first, "a second run"
    assert digest(run(method, resident=True)) == first, "pixels that stay on the device"


@pytest.mark.parametrize("method", METHODS)
def test_a_run_resumes_to_the_same_bits(method: str, tmp_path: Path) -> None:
    expected = digest(run(method))
    state, built, sources = start_run(method, CONFIG, parent().to(DEVICE))
    half = loop.fit(state, built, sources, CONFIG, until=CONFIG.steps // 2)
    saved = checkpoints.save(tmp_path, half)
    state, built, sources = start_run(method, CONFIG, parent().to(DEVICE))
    blank = loop.prepare(state.classifier, built, sources, CONFIG)
    assert digest(weights(loop.fit(checkpoints.restore(saved, blank), built, sources, CONFIG))) == expected


@pytest.mark.parametrize("augment", AUGMENT)
def test_views_are_those_of_the_processor(augment: str) -> None:
    sources = make_data()._replace(augment=augment)
    here, there = data.build_batch(sources, 3, 8, DEVICE), data.build_batch(sources, 3, 8)
    tolerance = 1e-4 if "crop" in augment else 0.0
    torch.testing.assert_close(here.images.cpu(), there.images, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("precision", "limit"), [("fp32", 1e-4), ("tf32", 1e-3), ("auto", 1e-3)])
@pytest.mark.parametrize("network", ["test_resnet", "test_efficientnet"])
def test_the_fisher_is_exact(network: str, precision: FisherPrecision, limit: float) -> None:
    model, images = parent(network), make_images(20, OLD, 3)
    names = [name for name, _ in model.named_parameters()]

    def measure(model: torch.nn.Module, device: torch.device, kind: torch.dtype) -> dict[str, torch.Tensor]:
        model = model.to(device, kind)
        read = lambda start, stop: data.normalize(images, start, stop, device).to(kind)  # noqa: E731
        return fisher.fisher_diagonal(model, read, 20, names, [OLD.name], labels="exact", precision=precision)

    exact = measure(model, torch.device("cpu"), torch.float64)
    for name, value in measure(model, DEVICE, torch.float32).items():
        error = (value.cpu().double() - exact[name]).norm() / exact[name].norm().clamp(min=1e-30)
        assert error < limit, name


def test_unlabeled_images_come_to_the_device() -> None:
    sources = make_data()._replace(unlabeled=make_images(9, NEW, 8))
    assert data.build_batch(sources, 0, 8, DEVICE).images.device.type == DEVICE.type


def test_a_server_answers_as_on_the_processor() -> None:
    bundle = Bundle(parent(), Preprocessing(32, "squash", 1.0, "bilinear"), {}, "here", "0", "test_resnet", "fc")
    pixels = make_images(5, OLD, 3).pixels.numpy()
    expected = load_model(bundle, "torch").run(pixels)
    bundle.classifier.to(DEVICE)
    for task, logits in load_model(bundle, "torch").run(pixels).items():
        torch.testing.assert_close(torch.from_numpy(logits), torch.from_numpy(expected[task]), rtol=1e-3, atol=1e-4)
